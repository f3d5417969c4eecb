"""What one shard adds to the statistics of a folder; tallies of several shards add up, in bounded memory.

Lengths are counted one by one, as there are few different ones; ratios and sizes in steps of a thousandth. What
grows with the data is the vocabulary, and 8 bytes a sample and a caption, by which copies are found.
"""

import math
import re
from collections import Counter
from dataclasses import dataclass, field, fields

import numpy as np

from shards.errors import DataError
from shards.manifest import Manifest, read_index
from shards.members import captions_of, is_label
from shards.seen import hash64
from shards.tools.duplicates import Hashes
from shards.tools.indexed import indexed_samples

STEPS = 1000
"""Steps of a logarithmic count from 1 to e."""
_WORD = re.compile(r"\w+(?:['’]\w+)*")


def words_of(caption: str) -> list[str]:
    """The words of a caption in lower case; an apostrophe within one belongs to it."""
    return _WORD.findall(caption.lower())


def step_of(value: float) -> int:
    """The step, about a thousandth wide, that a positive value falls into."""
    return round(math.log(value) * STEPS)


def value_of(step: int) -> float:
    """The middle of a step."""
    return math.exp(step / STEPS)


@dataclass
class Tally:
    """Counts over some shards. Counters map a value, or its step, to how often it was met."""

    samples: int = 0
    captions: int = 0
    bytes: int = 0
    captions_a_sample: Counter[int] = field(default_factory=Counter)
    words_a_caption: Counter[int] = field(default_factory=Counter)
    words: Counter[str] = field(default_factory=Counter)
    width: Counter[int] = field(default_factory=Counter)
    height: Counter[int] = field(default_factory=Counter)
    aspect: Counter[int] = field(default_factory=Counter)
    """Steps of width / height."""
    megapixels: Counter[int] = field(default_factory=Counter)
    """Steps."""
    sample_bytes: Counter[int] = field(default_factory=Counter)
    """Steps."""
    images: list[Hashes] = field(default_factory=list)
    texts: list[Hashes] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        """Count what `other` counted, too."""
        for each in fields(self):
            mine, theirs = getattr(self, each.name), getattr(other, each.name)
            if isinstance(mine, Counter):
                mine.update(theirs)
            else:
                setattr(self, each.name, mine + theirs)


def tally_shard(manifest: Manifest) -> Tally:
    """Count the samples of a manifest's one shard. Raises `DataError` when it is damaged."""
    index, location = read_index(manifest, 0), manifest.shard_location(0)
    tally = Tally(samples=len(index), bytes=int(manifest.bytes[0]), images=[index.content.copy()])
    sized = (index.widths > 0) & (index.heights > 0)
    widths, heights = index.widths[sized].tolist(), index.heights[sized].tolist()
    tally.width.update(widths)
    tally.height.update(heights)
    tally.aspect.update(step_of(width / height) for width, height in zip(widths, heights, strict=True))
    tally.megapixels.update(step_of(width * height / 1e6) for width, height in zip(widths, heights, strict=True))
    tally.sample_bytes.update(map(step_of, index.sizes.tolist()))
    texts = []
    for row, sample in indexed_samples(location, index, is_label):
        try:
            captions = captions_of(sample.members)
        except ValueError as error:
            raise DataError(f"{location}: sample {index.key(row)}: {error}") from None
        tally.captions += len(captions)
        tally.captions_a_sample[len(captions)] += 1
        for caption in captions:
            words = words_of(caption)
            tally.words_a_caption[len(words)] += 1
            tally.words.update(words)
            texts.append(hash64(caption))
    tally.texts = [np.array(texts, np.uint64)]
    return tally
