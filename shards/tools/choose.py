"""Which samples of a folder to look at."""

import random
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from shards.errors import DataError
from shards.manifest import Manifest, read_index, read_index_table
from shards.members import captions_of, is_label
from shards.tarwalk import RawSample
from shards.tools.indexed import indexed_samples


@dataclass(frozen=True)
class Choice:
    """What is asked for; what is None does not restrict."""

    samples: int
    """At most."""
    seed: int = 0
    shard: str | None = None
    key: str | None = None
    word: str | None = None
    """Part of a caption, whatever the case of its letters."""


def choose(manifest: Manifest, choice: Choice) -> list[tuple[int, int]]:
    """Shards and rows in the folder's order, drawn by the seed. Raises `DataError` when there is none.

    With a word, shards are read in an order drawn by the seed until enough of their captions have it.
    """
    shards = range(len(manifest.names))
    if choice.shard is not None:
        name = choice.shard.removesuffix(".tar")
        if name not in manifest.names:
            raise DataError(f"--shard {choice.shard}: no such shard; they are called as {manifest.names[0]}")
        shards = range(manifest.names.index(name), manifest.names.index(name) + 1)
    draw = random.Random(choice.seed)
    if choice.key is not None:
        found = [(shard, row) for shard in shards for row in _with_key(manifest, shard, choice.key)]
        missing = f"--key {choice.key}: no sample of this key"
    elif choice.word is not None:
        found = _with_word(manifest, draw.sample(shards, len(shards)), choice, draw)
        missing = f"--grep {choice.word}: no caption with it"
    else:
        first = int(manifest.first_sample[shards[0]])
        numbers = range(first, first + int(manifest.samples[shards[0] : shards[-1] + 1].sum()))
        found = [_place(manifest, number) for number in draw.sample(numbers, min(choice.samples, len(numbers)))]
        missing = "no sample"
    if not found:
        raise DataError(f"{manifest.location}: {missing}")
    return sorted(found[: choice.samples])


def _place(manifest: Manifest, number: int) -> tuple[int, int]:
    shard = int(np.searchsorted(manifest.first_sample, number, side="right")) - 1
    return shard, number - int(manifest.first_sample[shard])


def _with_key(manifest: Manifest, shard: int, key: str) -> list[int]:
    keys = read_index_table(manifest, shard)["key"]
    rows: list[int] = pc.indices_nonzero(pc.equal(keys, key)).to_pylist()
    return rows


def _with_word(manifest: Manifest, shards: list[int], choice: Choice, draw: random.Random) -> list[tuple[int, int]]:
    assert choice.word is not None
    found: list[tuple[int, int]] = []
    for shard in shards:
        index = read_index(manifest, shard)
        samples = indexed_samples(manifest.shard_location(shard), index, is_label)
        rows = [row for row, sample in samples if _has(sample, choice.word)]
        found += [(shard, row) for row in draw.sample(rows, min(choice.samples - len(found), len(rows)))]
        if len(found) == choice.samples:
            break
    return found


def _has(sample: RawSample, word: str) -> bool:
    try:
        captions = captions_of(sample.members)
    except ValueError:  # shown as damaged when it is drawn, not searched
        return False
    return any(word.casefold() in caption.casefold() for caption in captions)
