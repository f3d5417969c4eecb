"""The pieces of work of a conversion: consecutive records that one process writes, and notes as finished.

What is written depends on the records alone, so it does not matter which process, on which machine, writes a
unit, or how often that was begun before.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from shards.atomic import replacing
from shards.errors import DataError
from shards.manifest import IMAGE, REGIONS
from shards.prepare import Resize, load_sample
from shards.sources.record import Record, Skipped
from shards.staging import UNITS
from shards.tarwriter import Encoded, encode, writing_shard

SAMPLES_PER_SHARD = 1000
MOST_SKIPPED = 10_000
"""Of one unit, beside its records: a source of which nothing is usable must not become one unit in memory."""
Item = Record | Skipped


@dataclass(frozen=True)
class Options:
    """How a source is written."""

    samples_per_shard: int = SAMPLES_PER_SHARD
    """Records a unit; without `shard_bytes` each unit is one shard."""
    shard_bytes: int | None = None
    """A unit's shard is closed, and another begun, before its file would grow beyond this."""
    resize: Resize = field(default_factory=Resize)
    seed: int | None = None
    """Shuffle the records of each split first, which holds them all in memory; None keeps the source's order."""

    def as_dict(self) -> dict[str, object]:
        return {
            "samples_per_shard": self.samples_per_shard,
            "shard_bytes": self.shard_bytes,
            "resize": vars(self.resize),
            "seed": self.seed,
        }


@dataclass(frozen=True)
class Unit:
    """Consecutive items of a split, to be written by one process into the folder `root`."""

    root: Path
    split: str
    number: int
    items: list[Item]
    options: Options


def cut(items: Iterable[Item], records: int) -> Iterator[list[Item]]:
    """Pieces of `records` records each, with what was skipped before them.

    The last may be shorter, and so may one in which `MOST_SKIPPED` items were skipped.
    """
    piece: list[Item] = []
    count = 0
    for item in items:
        piece.append(item)
        count += isinstance(item, Record)
        if count == records or len(piece) - count == MOST_SKIPPED:
            yield piece
            piece, count = [], 0
    if piece:
        yield piece


def count_records(items: Iterable[Item]) -> int:
    return sum(isinstance(item, Record) for item in items)


def note_path(root: Path, number: int) -> Path:
    """Where a unit is noted as finished: its shards' rows of the shard table, and what it skipped."""
    return root / UNITS / f"{number:06d}.json"


def write_unit(unit: Unit) -> tuple[str, int]:
    """Write a unit's shards, then its note: a unit without a note is written again from its start.

    Returns its split and the number of its records. Raises `DataError` when the disk does not take it, or when
    its records cannot stand in one data set.
    """
    try:
        return _write(unit)
    except OSError as error:  # what cannot be read is skipped, so it is the output
        raise DataError(f"{unit.root}: cannot be written to ({error.strerror}); mend it and repeat") from None


def _write(unit: Unit) -> tuple[str, int]:
    skipped: list[Skipped] = []
    holds: dict[str, str] = {}
    shards: list[dict[str, object]] = []
    samples = _samples(unit, skipped, holds)
    following = next(samples, None)
    while following is not None:
        name = f"{unit.split}-{unit.number:06d}" + (f"-{len(shards):03d}" if unit.options.shard_bytes else "")
        with writing_shard(unit.root, name, shards) as writer:
            while following is not None and writer.has_room(following, unit.options.shard_bytes):
                writer.add(following)
                following = next(samples, None)
    note = {"shards": shards, "skipped": [[item.name, item.reason] for item in skipped], "holds": holds}
    with replacing(note_path(unit.root, unit.number), unique=True) as stream:
        stream.write(json.dumps(note).encode())
    return unit.split, count_records(unit.items)


def _samples(unit: Unit, skipped: list[Skipped], holds: dict[str, str]) -> Iterator[Encoded]:
    keys: set[str] = set()
    for item in unit.items:
        loaded = load_sample(item, unit.options.resize) if isinstance(item, Record) else item
        if isinstance(loaded, Skipped):
            skipped.append(loaded)
            continue
        key = loaded.record.key
        if key in keys:
            raise DataError(f"split {unit.split}: two samples are named {key}; names must be unique")
        keys.add(key)
        parts = ((IMAGE, loaded.image), (REGIONS, loaded.regions))
        holds.setdefault("+".join(name for name, part in parts if part is not None), key)
        check_alike(unit.split, holds)
        yield encode(loaded)


def check_alike(split: str, holds: dict[str, str]) -> None:
    """Raise `DataError` unless `holds`, what samples hold -> the key of one that does, has one entry at most."""
    if len(holds) > 1:
        found = ", ".join(f"sample {key} has {what.replace('+', ' and ')}" for what, key in sorted(holds.items()))
        raise DataError(f"split {split}: {found}; all samples must have the same")
