"""A source -> folders of shards: in parallel, in parts, resumable, and always the same bytes.

The records of a split are cut into *units* of `samples_per_shard`. A unit is the piece of work: one process
writes its shards, then notes them in a file of its own. What is written depends on the records alone, so any
number of processes, of parts on other machines, and of kills in between give the same bytes.

    OUT/.partial/plan.json               what is converted, and how: a second call must mean the same
    OUT/.partial/SPLIT/                  finished shards
    OUT/.partial/SPLIT/.units/000012.json  a finished unit: its shards and what it skipped

`publish` joins the units' notes into manifests and moves the splits into place.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from shards.atomic import replacing
from shards.errors import DataError
from shards.keyed_random import key_of, permutation
from shards.manifest import IMAGE, REGIONS, SHARD_SCHEMA, Rows, write_manifest
from shards.parallel import ordered_map
from shards.prepare import Resize, load_sample
from shards.sources.record import Record, Skipped, Source, Split
from shards.staging import UNITS, Staging
from shards.tarwriter import Encoded, ShardWriter, encode

SAMPLES_PER_SHARD = 1000
_SHUFFLE = 9  # what a random number is for; part of its key


@dataclass(frozen=True)
class Options:
    """How a source is written."""

    samples_per_shard: int = SAMPLES_PER_SHARD
    """Records a unit; without `shard_bytes` each unit is one shard."""
    shard_bytes: int | None = None
    """A unit's shard is closed, and another begun, before it would grow beyond this."""
    resize: Resize = field(default_factory=Resize)
    seed: int | None = None
    """Shuffle the records of each split first; None keeps the source's order."""

    def as_dict(self) -> dict[str, object]:
        return {
            "samples_per_shard": self.samples_per_shard,
            "shard_bytes": self.shard_bytes,
            "resize": vars(self.resize),
            "seed": self.seed,
        }


@dataclass(frozen=True)
class _Unit:
    """Consecutive items of a split, to be written by one process."""

    root: Path
    split: str
    number: int
    items: list[Record | Skipped]
    options: Options


@dataclass
class SplitReport:
    """What was written of one split, and what was left out."""

    samples: int = 0
    captions: int = 0
    shards: int = 0
    bytes: int = 0
    skipped: list[Skipped] = field(default_factory=list)


def convert(
    source: Source,
    staging: Staging,
    options: Options,
    *,
    processes: int = 1,
    part: tuple[int, int] = (1, 1),
    on_records: Callable[[str, int], None] = lambda _split, _count: None,
) -> None:
    """Write this part's units of every split into the staging folder; those that are finished already stay.

    `part` (i, n) takes every n-th unit, from the i-th on, counted from 1. `on_records` is called with the
    split and the number of records of each unit as it is done.
    """
    for split in source.splits:
        root = staging.split(split.name)
        (root / UNITS).mkdir(parents=True, exist_ok=True)
        units = _Units(split, root, options, part, on_records)
        for records in ordered_map(_write_unit, units, processes, chunk=1):
            on_records(split.name, records)
        with staging.alone(), replacing(root / UNITS / "total.json") as stream:
            stream.write(json.dumps(units.total).encode())


def publish(staging: Staging, dataset: str, splits: Iterable[str]) -> dict[str, SplitReport]:
    """Join the units' notes into manifests and move all splits into place.

    Raises `DataError` when a unit is missing, or when nothing of a split was usable.
    """
    reports: dict[str, SplitReport] = {}
    faults: list[DataError] = []
    for split in splits:  # all of them: a split of which nothing is usable is removed
        try:
            reports[split] = _join(staging.split(split), dataset, split)
        except DataError as error:
            faults.append(error)
    if faults:
        raise faults[0]
    staging.commit()
    return reports


def write_split(
    items: Iterable[Record | Skipped],
    root: Path,
    *,
    dataset: str,
    split: str,
    options: Options = Options(),
    processes: int = 1,
) -> SplitReport:
    """Write one split's records as a folder of shards with its manifest at `root`, which must not exist yet."""
    with Staging(root.parent, folder=f".{root.name}.partial") as staging:
        staging.claim([root.name], {})
        convert(Source(dataset, [Split(root.name, items)]), staging, options, processes=processes)
        report = _join(staging.split(root.name), dataset, split)
        staging.commit()
        return report


def _shuffled(split: Split, seed: int | None) -> Iterable[Record | Skipped]:
    if seed is None:
        return split.items
    items = list(split.items)
    return (items[place] for place in permutation(key_of(seed, _SHUFFLE), len(items)))


def _cut(items: Iterable[Record | Skipped], records: int) -> Iterator[list[Record | Skipped]]:
    """Pieces of `records` records each, with what was skipped before them; the last may be shorter."""
    piece: list[Record | Skipped] = []
    count = 0
    for item in items:
        piece.append(item)
        count += isinstance(item, Record)
        if count == records:
            yield piece
            piece, count = [], 0
    if piece:
        yield piece


def _records(items: list[Record | Skipped]) -> int:
    return sum(isinstance(item, Record) for item in items)


class _Units:
    """The units of a split that this part has still to write; `total` counts all, once they were iterated."""

    def __init__(
        self,
        split: Split,
        root: Path,
        options: Options,
        part: tuple[int, int],
        on_records: Callable[[str, int], None],
    ) -> None:
        self.split, self.root, self.options, self.part = split, root, options, part
        self.on_records = on_records
        self.total = 0

    def __iter__(self) -> Iterator[_Unit]:
        place, parts = self.part
        pieces = _cut(_shuffled(self.split, self.options.seed), self.options.samples_per_shard)
        for number, items in enumerate(pieces):
            self.total = number + 1
            if number % parts != place - 1:
                continue
            if _note(self.root, number).is_file():
                self.on_records(self.split.name, _records(items))
                continue
            yield _Unit(self.root, self.split.name, number, items, self.options)


def _note(root: Path, number: int) -> Path:
    return root / UNITS / f"{number:06d}.json"


def _write_unit(unit: _Unit) -> int:
    """Write a unit's shards, then its note: a unit without a note is written again from its start.

    Returns the number of its records.
    """
    skipped: list[Skipped] = []
    holds: set[tuple[str, ...]] = set()
    shards: list[dict[str, object]] = []
    samples = _samples(unit, skipped, holds)
    following = next(samples, None)
    while following is not None:
        name = f"{unit.split}-{unit.number:06d}" + (f"-{len(shards):03d}" if unit.options.shard_bytes else "")
        with ShardWriter(unit.root, name) as writer:
            while following is not None and writer.has_room(following, unit.options.shard_bytes):
                writer.add(following)
                following = next(samples, None)
        shards.append(writer.finish())
    note = {
        "shards": shards,
        "skipped": [[item.name, item.reason] for item in skipped],
        "holds": sorted(holds),
    }
    with replacing(_note(unit.root, unit.number)) as stream:
        stream.write(json.dumps(note).encode())
    return _records(unit.items)


def _samples(unit: _Unit, skipped: list[Skipped], holds: set[tuple[str, ...]]) -> Iterator[Encoded]:
    for item in unit.items:
        loaded = load_sample(item, unit.options.resize) if isinstance(item, Record) else item
        if isinstance(loaded, Skipped):
            skipped.append(loaded)
            continue
        parts = ((IMAGE, loaded.image), (REGIONS, loaded.regions))
        holds.add(tuple(name for name, part in parts if part is not None))
        yield encode(loaded)


def _join(root: Path, dataset: str, split: str) -> SplitReport:
    total = root / UNITS / "total.json"
    if not total.is_file():
        raise DataError(f"{root}: no part has come to the end of split {split}; convert the parts first")
    report = SplitReport()
    shards: Rows = {name: [] for name in SHARD_SCHEMA.names}
    holds: set[tuple[str, ...]] = set()
    for number in range(json.loads(total.read_bytes())):
        if not _note(root, number).is_file():
            raise DataError(
                f"{root}: unit {number} of split {split} is not there yet; of N parts, part {number} % N + 1 "
                "writes it"
            )
        note = json.loads(_note(root, number).read_bytes())
        report.skipped += [Skipped(name, reason) for name, reason in note["skipped"]]
        holds |= {tuple(one) for one in note["holds"]}
        for row in note["shards"]:
            for column, value in row.items():
                shards[column].append(value)
            report.samples += row["samples"]
            report.captions += row["captions"]
            report.bytes += row["bytes"]
            report.shards += 1
    if not report.samples:
        shutil.rmtree(root)  # the same units would be found finished for ever
        first = [f"; the first of {len(report.skipped)}: {item.name}: {item.reason}" for item in report.skipped[:1]]
        raise DataError(f"split {split}: no usable sample{''.join(first)}")
    if len(holds) > 1:
        raise DataError(
            f"split {split}: some samples have an image or regions that others lack; all must have the same"
        )
    if report.skipped:
        with replacing(root / "skipped.jsonl") as stream:
            for item in report.skipped:
                stream.write(json.dumps({"name": item.name, "reason": item.reason}).encode() + b"\n")
    write_manifest(root, dataset, split, holds.pop(), shards)
    return report


def parse_part(text: str) -> tuple[int, int]:
    """`3/8` -> (3, 8). Raises `DataError`."""
    first, _, last = text.partition("/")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise DataError(f"--part {text}: write I/N with I from 1 to N, such as 3/8")
    return int(first), int(last)
