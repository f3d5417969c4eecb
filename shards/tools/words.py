"""The words of captions: cutting a caption into words, and counting words over all shards.

Counting is one pass with bounded memory: each shard gives its most frequent words and its part of a random
sample of captions, and these are merged in the shards' order. The result depends on the shards alone, not on
the number of processes.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from shards.keyed_random import key_of, mix
from shards.manifest import Manifest
from shards.reader import ShardReader
from shards.tools.sweep import ShardWork, sweep

SHARD_WORDS = 20_000
"""Words that one shard's count keeps: a word that is frequent on the whole is among them where it is frequent."""
TOTAL_WORDS = 300_000
"""Words that the merged count keeps."""

LONGEST = 40
"""Letters of a word: no concept is longer, and the tagger's time grows faster than with their square."""

_TOKEN = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*|[^\w\s]")
_SAMPLE = 6  # what a random number is for; part of its key


def tokens(caption: str) -> list[str]:
    """The words in lower case, without a possessive 's, and the punctuation marks, in their order.

    Words beyond `LONGEST` letters are left out.
    """
    lower = caption.lower().replace("\u2019", "'")
    found = (token.removesuffix("'s") for token in _TOKEN.findall(lower))
    return [token for token in found if len(token) <= LONGEST]


def is_word(token: str) -> bool:
    return token[0].isalpha()


def words(caption: str) -> list[str]:
    """The words in lower case, in their order: `A dog's red T-shirt.` -> `a dog red t-shirt`."""
    return [token for token in tokens(caption) if is_word(token)]


@dataclass
class WordCount:
    """How often words occur, and a random sample of the captions that they were counted in."""

    captions: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    """Word -> captions that hold it, each counted once."""
    sample: list[str] = field(default_factory=list)

    def add(self, other: "WordCount") -> None:
        self.captions += other.captions
        self.counts.update(other.counts)
        self.sample.extend(other.sample)
        if len(self.counts) > 2 * TOTAL_WORDS:
            self.counts = _most_frequent(self.counts, TOTAL_WORDS)


def _most_frequent(counts: Counter[str], number: int) -> Counter[str]:
    if len(counts) <= number:
        return counts
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return Counter(dict(ranked[:number]))


def shard_captions(reader: ShardReader, shard: int) -> Iterator[list[str]]:
    """The captions of each sample of a shard, in order; no image is decoded."""
    for row in range(len(reader.index(shard))):
        yield reader.read(shard, row).captions


def count_words(
    manifests: Sequence[Manifest],
    *,
    sample: int,
    seed: int = 0,
    processes: int = 1,
    on_samples: Callable[[int], None] = lambda _count: None,
) -> WordCount:
    """Count the words of all captions, and draw about `sample` of the captions, keyed by `seed`."""
    captions = sum(manifest.num_captions for manifest in manifests)
    fraction = min(1.0, sample / max(1, captions))
    total = WordCount()
    function = partial(_count_shard, fraction, seed)
    for part in sweep(function, manifests, processes=processes, on_samples=on_samples):
        total.add(part)
    return total


def _count_shard(fraction: float, seed: int, reader: ShardReader, work: ShardWork) -> WordCount:
    result = WordCount()
    captions = int(reader.manifest.captions[work.shard])
    key = key_of(seed, _SAMPLE, work.folder, work.shard)
    drawn = mix(mix(np.arange(captions, dtype=np.uint64)) ^ key) <= np.uint64(fraction * (2**64 - 2**12))
    for texts in shard_captions(reader, work.shard):
        for text in texts:
            if result.captions < captions and drawn[result.captions]:
                result.sample.append(text)
            result.captions += 1
            result.counts.update(set(words(text)))
    result.counts = _most_frequent(result.counts, SHARD_WORDS)
    return result
