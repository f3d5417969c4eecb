"""Finished units -> manifests, and all splits into place."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shards.atomic import replacing
from shards.errors import DataError
from shards.manifest import MANIFEST, SHARD_SCHEMA, SHARD_TABLE, Manifest, read_index, read_manifest, write_manifest
from shards.repeats import Repeats
from shards.seen import hash64
from shards.shard_index import Rows, index_name
from shards.sources.record import Skipped
from shards.staging import UNITS, Staging
from shards.units import check_alike, note_path

TOTAL = "total.json"
"""Beside the units' notes: how many there are."""
SKIPPED = "skipped.jsonl"
NAMED = 10
"""Skipped items that a report names."""


@dataclass
class SplitReport:
    """What was written of one split, and what was left out."""

    samples: int = 0
    captions: int = 0
    shards: int = 0
    bytes: int = 0
    skipped: int = 0
    first_skipped: list[Skipped] = field(default_factory=list)
    """The first few; all of them stand in `skipped.jsonl`."""

    def add(self, shard: dict[str, int]) -> None:
        self.samples += shard["samples"]
        self.captions += shard["captions"]
        self.bytes += shard["bytes"]
        self.shards += 1

    def skip(self, item: Skipped) -> None:
        self.skipped += 1
        if self.skipped <= NAMED:
            self.first_skipped.append(item)


def publish(staging: Staging, dataset: str, splits: Iterable[str]) -> dict[str, SplitReport]:
    """Join the units' notes into manifests and move all splits into place.

    Raises `DataError` when a unit is missing, or when nothing of a split was usable: the split is discarded,
    so that it is read anew next time.
    """
    if (found := staging.finish_commit()) is not None:
        return {split: _report(entry) for split, entry in found.items()}
    splits = list(splits)
    staging.check(splits)
    for split in splits:
        require_whole(staging.split(split), split)
    reports: dict[str, SplitReport] = {}
    failed: list[DataError] = []
    for split in splits:
        try:
            reports[split] = join(staging.split(split), dataset, split)
        except DataError as error:
            staging.discard(split)
            failed.append(error)
    if failed:
        raise failed[0]
    staging.commit({split: asdict(report) for split, report in reports.items()})
    return reports


def _report(entry: dict[str, Any]) -> SplitReport:
    return SplitReport(**{**entry, "first_skipped": [Skipped(**item) for item in entry["first_skipped"]]})


def merge(out: Path, *, overwrite: bool = False) -> dict[str, SplitReport]:
    """Publish what `convert` wrote in parts; the plan must have been claimed with `dataset` in it."""
    with Staging(out, overwrite=overwrite) as staging:
        plan = staging.plan()
        if plan is None:
            raise DataError(f"{out}: no unfinished conversion is there; convert with --part first")
        return publish(staging, plan["dataset"], plan["splits"])


def missing_units(root: Path) -> list[int] | None:
    """The units of the split in `root` that are not written yet; None while it is not known how many there are."""
    total = root / UNITS / TOTAL
    if not total.is_file():
        return None
    there = {path.name for path in (root / UNITS).iterdir()}
    return [number for number in range(json.loads(total.read_bytes())) if note_path(root, number).name not in there]


def require_whole(root: Path, split: str) -> int:
    """The number of units of a split in `root`. Raises `DataError` unless all are written."""
    missing = missing_units(root)
    if missing is None:
        raise DataError(f"{root}: no part has come to the end of split {split}; convert all parts first")
    if missing:
        raise DataError(
            f"{root}: {len(missing):,} units of split {split} are not written yet; the first is {missing[0]}: "
            f"of N parts, part {missing[0]} % N + 1 writes it"
        )
    return int(json.loads((root / UNITS / TOTAL).read_bytes()))


def join(root: Path, dataset: str, split: str) -> SplitReport:
    """Write the manifest of the units in `root`, which are all finished.

    Raises `DataError` when no sample is usable, when samples hold different things, or when two have one name.
    """
    report = SplitReport()
    shards: Rows = {name: [] for name in SHARD_SCHEMA.names}
    holds: dict[str, str] = {}
    with replacing(root / SKIPPED) as stream:
        for number in range(json.loads((root / UNITS / TOTAL).read_bytes())):
            note = json.loads(note_path(root, number).read_bytes())
            for name, reason in note["skipped"]:
                report.skip(Skipped(name, reason))
                stream.write(json.dumps({"name": name, "reason": reason}).encode() + b"\n")
            holds = {**note["holds"], **holds}
            for row in note["shards"]:
                report.add(row)
                for column, value in row.items():
                    shards[column].append(value)
    if not report.samples:
        first = [f"; the first of {report.skipped:,}: {one.name}: {one.reason}" for one in report.first_skipped[:1]]
        raise DataError(f"split {split}: no usable sample{''.join(first)}")
    check_alike(split, holds)
    write_manifest(root, dataset, split, tuple(next(iter(holds)).split("+")), shards)
    _check_keys(read_manifest(root))
    _delete_others(root, shards["name"], bool(report.skipped))
    return report


def _check_keys(manifest: Manifest) -> None:
    # a unit was checked when it was written; over all, this tells an input that changed between two units
    keys = Repeats()
    for _, key in _keys(manifest):
        keys.add(key)
    twice = keys.found()
    where: dict[str, str] = {}
    for name, key in _keys(manifest) if twice else ():
        if hash64(key) in twice and where.setdefault(key, name) != name:
            raise DataError(
                f"split {manifest.split}: two samples are named {key}, in {where[key]} and in {name}; names must "
                "be unique; if the input was changed meanwhile, convert it anew"
            )


def _keys(manifest: Manifest) -> Iterator[tuple[str, str]]:
    for shard, name in enumerate(manifest.names):
        yield from ((name, key) for key in read_index(manifest, shard).keys.to_pylist())


def _delete_others(root: Path, names: list[object], skipped: bool) -> None:
    """Delete what killed writers left, and shards of a unit that has fewer since an input was changed."""
    wanted = {UNITS, MANIFEST, SHARD_TABLE, *([SKIPPED] if skipped else [])}
    wanted |= {file for name in names for file in (f"{name}.tar", index_name(str(name)))}
    for path in root.iterdir():
        if path.name not in wanted:
            path.unlink()
