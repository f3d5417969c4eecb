"""A source -> folders of shards: in parallel, in parts, resumable, and always the same bytes.

The records of a split are cut into units (`shards.units`), each written by one process and then noted as
finished. `publish` joins the notes into manifests and moves the splits into place (`shards.staging`).
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from shards.atomic import building, replacing
from shards.errors import DataError
from shards.keyed_random import key_of, permutation
from shards.lock import FileLock
from shards.parallel import ordered_map
from shards.publish import TOTAL, SplitReport, join, merge, publish
from shards.sources.record import Source, Split
from shards.staging import UNITS, Staging
from shards.units import Item, Options, Unit, count_records, cut, note_path, write_unit

__all__ = ["Options", "SplitReport", "convert", "merge", "parse_part", "publish", "write_split"]

_SHUFFLE = 9  # what a random number is for; part of its key
OnRecords = Callable[[str, int], None]


def _ignore(_split: str, _count: int) -> None:
    pass


def convert(
    source: Source,
    staging: Staging,
    options: Options,
    *,
    processes: int = 1,
    part: tuple[int, int] = (1, 1),
    on_records: OnRecords = _ignore,
) -> None:
    """Write this part's units of every split into the staging folder; those that are finished already stay.

    `part` (i, n) takes every n-th unit, from the i-th on, counted from 1. `on_records` is called with the
    split and the number of records of each unit as it is done.
    """
    if staging.committed() is not None:  # all was written, and the splits are being moved
        return
    folders = [(split, staging.split(split.name)) for split in source.splits]
    _write_units(folders, options, processes, part, on_records, staging.lock)


def write_split(
    items: Iterable[Item],
    root: Path,
    *,
    dataset: str,
    split: str,
    options: Options | None = None,
    processes: int = 1,
) -> SplitReport:
    """Write one split's records as a folder of shards with its manifest at `root`, which must not exist yet."""
    with building(root) as scratch:
        _write_units([(Split(split, items), scratch)], options or Options(), processes)
        report = join(scratch, dataset, split)
        shutil.rmtree(scratch / UNITS)
        return report


def _write_units(
    folders: list[tuple[Split, Path]],
    options: Options,
    processes: int,
    part: tuple[int, int] = (1, 1),
    on_records: OnRecords = _ignore,
    lock: FileLock | None = None,
) -> None:
    # one pool for all splits: workers take a while to start
    units = (unit for split, root in folders for unit in _units(split, root, options, part, on_records))
    for split_name, records in ordered_map(write_unit, units, processes, chunk=1, lock=lock):
        on_records(split_name, records)


def _units(
    split: Split, root: Path, options: Options, part: tuple[int, int], on_records: OnRecords
) -> Iterator[Unit]:
    """The units that this part has still to write; notes how many there are in all at the end."""
    (root / UNITS).mkdir(parents=True, exist_ok=True)
    place, parts = part
    total = 0
    for number, items in enumerate(cut(_shuffled(split, options.seed), options.samples_per_shard)):
        total = number + 1
        if number % parts != place - 1:
            continue
        if note_path(root, number).is_file():
            on_records(split.name, count_records(items))
            continue
        yield Unit(root, split.name, number, items, options)
    with replacing(root / UNITS / TOTAL, unique=True) as stream:
        stream.write(json.dumps(total).encode())


def _shuffled(split: Split, seed: int | None) -> Iterable[Item]:
    if seed is None:
        return split.items
    items = list(split.items)
    return (items[place] for place in permutation(key_of(seed, _SHUFFLE), len(items)))


def parse_part(text: str) -> tuple[int, int]:
    """`3/8` -> (3, 8). Raises `DataError`."""
    first, _, last = text.partition("/")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise DataError(f"--part {text}: write I/N with I from 1 to N, such as 3/8")
    return int(first), int(last)
