"""A source -> finished splits, with what the user is told on the way."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import typer

from shards.commands.options import Writing
from shards.convert import Options, convert
from shards.errors import DataError
from shards.prepare import Resize, load_sample
from shards.progress import counted, progress_bar
from shards.publish import NAMED, SplitReport, merge, publish, require_whole
from shards.sources.record import Record, Skipped, Source, Split
from shards.staging import UNITS, Staging

LOOKED_AT = 1000
"""Items of a split that a dry run reads, and"""
LOADED = 100
"""samples that it loads with their images: enough to tell a wrong folder."""


def write_source(source: Source, writing: Writing) -> None:
    """Convert `source`, or this part of it, and publish it when it is whole.

    Raises `DataError`; what was finished by then stays, and the message tells how to go on.
    """
    names = [split.name for split in source.splits]
    staging = Staging(
        writing.out, overwrite=writing.overwrite, shared=writing.part is not None, inputs=source.inputs
    )
    staging.check(names)
    if source.in_order and writing.options.seed is not None:
        raise DataError(
            f"--seed: images within Parquet are read front to back; convert without it, and shuffle what was "
            f"written: itm shards reshard {writing.out} --seed {writing.options.seed} --out ..."
        )
    for split in source.splits:
        _check_usable(split)
    if writing.dry_run:
        for split in source.splits:
            typer.echo(f"would write {writing.out / split.name}: {_forecast(split, writing.options)}")
        return
    part = writing.part or (1, 1)
    with staging:
        staging.claim(names, {"dataset": source.dataset, **source.identity, **writing.options.as_dict()})
        if found := _finished(staging, names, part):
            typer.echo(f"going on with {staging.root}: {found:,} units of work were found finished", err=True)
        with _kept(staging, names):
            with progress_bar("convert", _total(source.splits, writing.options, part)) as advance:
                convert(
                    source,
                    staging,
                    writing.options,
                    processes=writing.processes,
                    part=part,
                    on_records=lambda _split, count: advance(count),
                )
            if writing.part is None:
                tell_published(writing.out, publish(staging, source.dataset, names))
    if writing.part is not None:
        typer.echo(
            f"part {part[0]} of {part[1]} is written; when all are, join them: itm shards merge {writing.out}"
        )


def merge_parts(out: Path, overwrite: bool, dry_run: bool) -> None:
    """Join the parts of a conversion and move its splits into place.

    Raises `DataError` when there is none, when a unit is missing, or when a part is still being written.
    """
    if not dry_run:
        tell_published(out, merge(out, overwrite=overwrite))
        return
    staging = Staging(out, overwrite=overwrite)
    plan = staging.plan()
    if plan is None:
        raise DataError(
            f"{out}: no unfinished conversion is there; give the --out of `itm shards convert ... --part I/N`"
        )
    staging.check(plan["splits"])
    for split in plan["splits"]:
        units = require_whole(staging.split(split), split)
        typer.echo(f"would write {out / split}: {units:,} units of work, all there")


def tell_published(out: Path, reports: dict[str, SplitReport]) -> None:
    """Name what was skipped, and a line a split."""
    for name, report in reports.items():
        show_skipped(report.first_skipped, report.skipped)
        skipped = f", {report.skipped:,} skipped (see skipped.jsonl)" if report.skipped else ""
        counts = [(report.samples, "image"), (report.captions, "caption"), (report.shards, "shard")]
        told = ", ".join(counted(*each) for each in counts)
        typer.echo(f"{out / name}: {told}, {report.bytes / 1e6:,.1f} MB{skipped}")


def _check_usable(split: Split) -> None:
    if split.count == 0:
        skipped = [item for item in islice(split.items, LOOKED_AT) if isinstance(item, Skipped)]
        first = [f"; the first left out: {item.name}: {item.reason}" for item in skipped[:1]]
        raise DataError(f"split {split.name}: no usable sample{''.join(first)}")


def _forecast(split: Split, options: Options) -> str:
    """What a split would become, after a look at its first items and images."""
    seen = list(islice(split.items, LOOKED_AT))
    records = [item for item in seen if isinstance(item, Record)]
    skipped = [item for item in seen if isinstance(item, Skipped)]
    loaded = [load_sample(item, Resize()) for item in records[:LOADED]]
    broken = [item for item in loaded if isinstance(item, Skipped)]
    if len(broken) == len(loaded):
        faults = broken or skipped
        first = f"; the first: {faults[0].name}: {faults[0].reason}" if faults else ""
        raise DataError(
            f"split {split.name}: none of the first {len(loaded) or len(seen):,} samples is usable{first}"
        )
    left_out = len(skipped) + len(broken)
    show_skipped([*skipped, *broken], left_out)
    is_whole = len(seen) < LOOKED_AT
    tried = f"{left_out:,} of the first {len(seen):,} skipped, {counted(len(loaded), 'image')} tried"
    total = len(records) - len(broken) if is_whole else split.count
    if total is None:
        return f"an unknown number of samples; {tried}"
    shards = counted(-(-total // options.samples_per_shard), "shard") + (" or more" if options.shard_bytes else "")
    if is_whole and len(loaded) == len(records):
        return f"{counted(total, 'sample')} in {shards}" + (f", {left_out:,} skipped" if left_out else "")
    return f"up to {counted(total, 'sample')} in {shards}; {tried}"


def _total(splits: Iterable[Split], options: Options, part: tuple[int, int]) -> int | None:
    """The records of this part, where they are known."""
    total = 0
    for split in splits:
        if split.count is None:
            return None
        starts = range(0, split.count, options.samples_per_shard)[part[0] - 1 :: part[1]]
        total += sum(min(options.samples_per_shard, split.count - start) for start in starts)
    return total


def _finished(staging: Staging, names: Sequence[str], part: tuple[int, int] = (1, 1)) -> int:
    """How many of this part's units are finished."""
    notes = (note for name in names for note in (staging.split(name) / UNITS).glob("[0-9]*.json"))
    return sum(int(note.stem) % part[1] == part[0] - 1 for note in notes)


@contextmanager
def _kept(staging: Staging, names: Sequence[str]) -> Iterator[None]:
    """Tell, when the block is left early, what stays and how to go on."""

    def hint() -> str:
        if not staging.root.exists() or not _finished(staging, names):
            return ""
        return (
            f"finished shards are kept in {staging.root}: repeat the command to go on, or, when input or options "
            "have changed, with --overwrite, which discards them"
        )

    try:
        yield
    except (DataError, OSError) as error:
        raise DataError("; ".join(filter(None, [str(error), hint()]))) from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(hint() or "nothing was finished yet") from None


def show_skipped(first: Sequence[Skipped], count: int) -> None:
    """Name the first few of `count` items that were left out; all of them stand in `skipped.jsonl`."""
    for item in first[:NAMED]:
        typer.echo(f"skipped {item.name}: {item.reason}", err=True)
    if count > NAMED:
        typer.echo(f"skipped {count - NAMED:,} more", err=True)
