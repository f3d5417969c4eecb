"""A manifest for tars that somebody else wrote; the tars stay as they are.

A tar is the unit of work: one process scans it, writes its index, and notes that, with the tar's size and time,
in a staging folder. A call that was killed goes on with what is noted; what is written is the same either way.

    OUT/.indexing/NAME.index.arrow   finished indexes
    OUT/.indexing/NAME.json          their notes
    OUT/.indexing/publishing         from here on all is moved into place, `manifest.json` last
"""

import fcntl
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.atomic import replacing
from shards.errors import DataError
from shards.manifest import MANIFEST, SHARD_SCHEMA, SHARD_TABLE, write_manifest
from shards.parallel import ordered_map
from shards.publish import SKIPPED, SplitReport
from shards.shard_index import Rows, index_name, write_index
from shards.sources.record import Skipped
from shards.tarwalk import DamagedTarError
from shards.tools.locate import unique_names
from shards.tools.scan import guess_holds_of, scan

STAGING, PUBLISHING = ".indexing", "publishing"


@dataclass(frozen=True)
class Plan:
    """What is indexed, and how."""

    tars: list[Path]
    out: Path
    """Folder of the manifest."""
    dataset: str
    split: str
    holds: tuple[str, ...] | None = None
    """What a sample must hold beside captions; None takes what most of the first samples do."""
    decode: bool = False
    """Decode every image, so that what does not decode is left out."""
    skip_damaged: bool = False
    """Leave damaged tars out."""
    overwrite: bool = False
    """Replace a manifest that stands in `out`."""


@dataclass(frozen=True)
class _Job:
    tar: Path
    name: str
    staging: Path
    settings: dict[str, Any]

    @property
    def note(self) -> Path:
        return self.staging / f"{self.name}.json"


def check(plan: Plan) -> None:
    """Raise `DataError` when a manifest stands there already."""
    if (plan.out / MANIFEST).is_file() and not plan.overwrite and not (plan.out / STAGING / PUBLISHING).exists():
        raise DataError(f"{plan.out}: has a {MANIFEST} already; give another --out, or --overwrite to replace it")


def index_tars(plan: Plan, *, processes: int = 1, on_shard: Callable[[], None] = lambda: None) -> SplitReport:
    """Scan the tars and write the manifest. Raises `DataError` when tars are damaged or nothing can be used."""
    check(plan)
    with _staging(plan.out) as staging:
        holds = plan.holds or guess_holds_of(plan.tars)
        settings = {"holds": list(holds), "decode": plan.decode}
        jobs = [
            _Job(tar, name, staging, settings) for tar, name in zip(plan.tars, unique_names(plan.tars), strict=True)
        ]
        for _ in ordered_map(_index, jobs, processes, chunk=1):
            on_shard()
        report, rows = _join(plan, jobs, staging)
        (staging / PUBLISHING).touch()
        _publish(plan, staging, holds, report, rows)
        return report


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """The staging folder, locked; removed with the empty folders above it when nothing in it is finished."""
    staging, created = out / STAGING, not out.exists()
    try:
        staging.mkdir(parents=True, exist_ok=True)
        lock = (staging / "lock").open("wb")
    except OSError as error:
        raise DataError(f"{out}: cannot be written to ({error.strerror}); give another folder with --out") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{out}: another call is indexing into this folder; wait for it") from None
        try:
            yield staging
        finally:
            if not any(staging.glob(index_name("*"))) and not (staging / PUBLISHING).exists():
                shutil.rmtree(staging, ignore_errors=True)
                if created and not any(out.iterdir()):
                    out.rmdir()


def _index(job: _Job) -> None:
    """Scan a tar, write its index and then its note; both stay where the note is of this very tar."""
    state = job.tar.stat()
    what = {"tar": str(job.tar.absolute()), "bytes": state.st_size, "mtime_ns": state.st_mtime_ns, **job.settings}
    if job.note.is_file():
        found: dict[str, Any] = json.loads(job.note.read_bytes())
        if found["what"] == what and (not (found["row"] or {}).get("samples") or _is_written(job)):
            return
    note: dict[str, Any] = {"what": what, "damaged": None, "row": None, "skipped": []}
    try:
        found_ = scan(str(job.tar), tuple(job.settings["holds"]), decode=job.settings["decode"])
    except DamagedTarError as error:
        note["damaged"] = str(error)
    else:
        index_sha256 = write_index(job.staging, job.name, found_.rows) if found_.rows["key"] else ""
        note["skipped"] = [[item.name, item.reason] for item in found_.skipped]
        note["row"] = {
            "name": job.name,
            "samples": len(found_.rows["key"]),
            "captions": sum(found_.rows["captions"]),
            "bytes": found_.bytes,
            "sha256": found_.sha256,
            "index_sha256": index_sha256,
        }
    with replacing(job.note) as stream:
        stream.write(json.dumps(note).encode())


def _is_written(job: _Job) -> bool:
    index = index_name(job.name)
    moved = (job.staging / PUBLISHING).exists() and (job.staging.parent / index).is_file()
    return moved or (job.staging / index).is_file()


def _notes(jobs: list[_Job]) -> Iterator[tuple[_Job, dict[str, Any]]]:
    # from the disk, one at a time: what was skipped may be much
    return ((job, json.loads(job.note.read_bytes())) for job in jobs)


def _join(plan: Plan, jobs: list[_Job], staging: Path) -> tuple[SplitReport, Rows]:
    """The report, and the shard table of the tars that hold a sample; lists in `staging` what was skipped."""
    report = SplitReport()
    rows: Rows = {column: [] for column in SHARD_SCHEMA.names}
    damaged = [(job.tar, note["damaged"]) for job, note in _notes(jobs) if note["damaged"]]
    if damaged and not plan.skip_damaged:
        named = "; ".join(f"{tar}: {reason}" for tar, reason in damaged[:3])
        raise DataError(
            f"{len(damaged):,} of {len(jobs):,} tars cannot be indexed: {named}{'; ...' * (len(damaged) > 3)}; "
            "mend them, or leave them out with --skip-damaged"
        )
    with replacing(staging / SKIPPED) as stream:
        for job, note in _notes(jobs):
            for item in _skipped(job.tar.name, note):
                report.skip(item)
                stream.write(json.dumps({"name": item.name, "reason": item.reason}).encode() + b"\n")
            row = note["row"]
            if row and row["samples"]:
                report.add(row)
                for column, value in {**row, "path": _path(job.tar, plan.out)}.items():
                    rows[column].append(value)
    if not report.samples:
        first = "".join(f"; {item.name}: {item.reason}" for item in report.first_skipped[:1])
        raise DataError(f"{len(jobs):,} tars and no usable sample in them{first}")
    return report, rows


def _skipped(tar: str, note: dict[str, Any]) -> Iterator[Skipped]:
    if note["damaged"]:
        yield Skipped(tar, note["damaged"])
        return
    yield from (Skipped(f"{tar}: sample {key}", reason) for key, reason in note["skipped"])
    if not note["row"]["samples"]:
        yield Skipped(tar, "no usable sample")


def _path(tar: Path, out: Path) -> str:
    tar, out = tar.absolute(), out.absolute()
    return str(tar.relative_to(out)) if tar.is_relative_to(out) else str(tar)


def _publish(plan: Plan, staging: Path, holds: tuple[str, ...], report: SplitReport, rows: Rows) -> None:
    """Move the indexes into place and write the tables; a kill in between is made good by the next call."""
    (plan.out / MANIFEST).unlink(missing_ok=True)  # of a manifest that is replaced: never half old, half new
    for old in (SHARD_TABLE, SKIPPED):
        (plan.out / old).unlink(missing_ok=True)
    for name in rows["name"]:
        index = staging / index_name(str(name))
        if index.is_file():
            index.rename(plan.out / index.name)
    wanted = {index_name(str(name)) for name in rows["name"]}
    for index in plan.out.glob(index_name("*")):
        if index.name not in wanted:  # of the manifest that is replaced
            index.unlink()
    if report.skipped:
        (staging / SKIPPED).rename(plan.out / SKIPPED)
    write_manifest(plan.out, plan.dataset, plan.split, holds, rows)
    shutil.rmtree(staging)
