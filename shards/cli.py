"""`itm shards ...`: make shards, from annotations and images or as demo data."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from shards.convert import Options, SplitReport
    from shards.sources.record import Source

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode="markdown", help="Turn data sets into WebDataset shards with a manifest."
)
convert_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode="markdown", help="Convert a data set; one command a format."
)
app.add_typer(convert_app, name="convert")

Out = Annotated[Path, typer.Option(help="Folder to write to; one folder a split is made in it.")]
PerShard = Annotated[int, typer.Option(min=1, help="Samples a shard; with --shard-bytes, records a unit of work.")]
ShardBytes = Annotated[int | None, typer.Option(min=1, help="Largest size of a shard, in bytes.")]
Processes = Annotated[int, typer.Option(min=1, help="Worker processes that read, decode and write.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace splits that stand in the folder already.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be written, and write nothing.")]


@app.command()
def demo(
    out: Out,
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives other scenes.")] = 0,
    pretrain: Annotated[int, typer.Option(min=1, help="Scenes with one noisy, web-like caption.")] = 6000,
    train: Annotated[int, typer.Option(min=1, help="Scenes with five captions, for fine-tuning.")] = 3000,
    val: Annotated[int, typer.Option(min=1, help="Scenes for choosing the best checkpoint.")] = 500,
    test: Annotated[int, typer.Option(min=1, help="Scenes for the final measurement.")] = 500,
    side: Annotated[int, typer.Option(min=16, help="Width and height of the pictures, in pixels.")] = 96,
    samples_per_shard: PerShard = 1000,
    processes: Processes = 2,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Make the demo data set: rendered scenes of several objects with captions.

    Writes OUT/pretrain, OUT/train, OUT/val and OUT/test. The same seed gives the same bytes.
    """
    from shards.convert import Options
    from shards.demo.source import demo_records
    from shards.sources.record import Source, Split

    counts = {"pretrain": pretrain, "train": train, "val": val, "test": test}
    splits = [Split(name, demo_records(name, count, seed, side), count) for name, count in counts.items()]
    source = Source("demo", splits, {"format": "demo", "seed": seed, "side": side, "counts": counts})
    _write(source, out, Options(samples_per_shard), processes, overwrite, dry_run)


@convert_app.command()
def karpathy(
    annotations: Annotated[Path, typer.Option(help="The JSON file, such as dataset_flickr30k.json.")],
    images: Annotated[Path, typer.Option(help="Folder that holds the image files.")],
    out: Out,
    samples_per_shard: PerShard = 1000,
    processes: Processes = 2,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Convert the Karpathy JSON layout (Flickr8K, Flickr30K, COCO).

    Writes OUT/train, OUT/val and OUT/test, those that the file has; COCO's `restval` joins train. An image
    that does not decode and a caption that is empty are named, counted and left out.
    """
    from shards.convert import Options
    from shards.sources.karpathy import read_karpathy

    _write(read_karpathy(annotations, images), out, Options(samples_per_shard), processes, overwrite, dry_run)


def _write(source: "Source", out: Path, options: "Options", processes: int, overwrite: bool, dry_run: bool) -> None:
    from shards.convert import convert, publish
    from shards.progress import progress_bar
    from shards.staging import Staging

    names = [split.name for split in source.splits]
    staging = Staging(out, overwrite=overwrite)
    staging.check(names)
    if dry_run:
        for split in source.splits:
            typer.echo(f"would write {out / split.name}: {split.count or 0:,} samples")
        return
    with staging:
        staging.claim(names, {"dataset": source.dataset, **source.identity, **options.as_dict()})
        with progress_bar("convert", sum(split.count or 0 for split in source.splits) or None) as advance:
            convert(source, staging, options, processes=processes, on_records=lambda _split, count: advance(count))
        reports = publish(staging, source.dataset, names)
    for name, report in reports.items():
        _show_skipped(report)
        typer.echo(_summary(out / name, report))


def _summary(path: Path, report: "SplitReport") -> str:
    skipped = f", {report.skipped:,} skipped (see skipped.jsonl)" if report.skipped else ""
    counts = f"{report.samples:,} images, {report.captions:,} captions, {_shards(report.shards)}"
    return f"{path}: {counts}, {report.bytes / 1e6:,.1f} MB{skipped}"


def _shards(count: int) -> str:
    return f"{count:,} shard{'s' * (count != 1)}"


def _show_skipped(report: "SplitReport") -> None:
    for item in report.first_skipped:
        typer.echo(f"skipped {item.name}: {item.reason}", err=True)
    if more := report.skipped - len(report.first_skipped):
        typer.echo(f"skipped {more:,} more", err=True)
