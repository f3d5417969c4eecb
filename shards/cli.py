"""`itm shards ...`: make shards, from annotations and images or as demo data."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from shards.convert import SplitReport
    from shards.sources.record import Record, Skipped

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode="markdown", help="Turn data sets into WebDataset shards with a manifest."
)
convert_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode="markdown", help="Convert a data set; one command a format."
)
app.add_typer(convert_app, name="convert")

Out = Annotated[Path, typer.Option(help="Folder to write to; one folder a split is made in it.")]
PerShard = Annotated[int, typer.Option(min=1, help="Samples a shard.")]
Processes = Annotated[int, typer.Option(min=1, help="Worker processes that read and decode images.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace splits that stand in the folder already.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be written, and write nothing.")]

SHOWN = 10
"""Skipped items named on the terminal; all of them stand in `skipped.jsonl`."""


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
    from shards.demo.source import demo_records

    counts = {"pretrain": pretrain, "train": train, "val": val, "test": test}
    splits = {name: demo_records(name, count, seed, side) for name, count in counts.items()}
    _write("demo", splits, counts, {}, out, samples_per_shard, processes, overwrite, dry_run)


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
    from shards.sources.karpathy import read_karpathy

    source = read_karpathy(annotations, images)
    counts = {split: len(records) for split, records in source.splits.items()}
    _write(
        source.dataset,
        source.splits,
        counts,
        source.skipped,
        out,
        samples_per_shard,
        processes,
        overwrite,
        dry_run,
    )


def _write(
    dataset: str,
    splits: "Mapping[str, Iterable[Record]]",
    counts: dict[str, int],
    skipped: "Mapping[str, Sequence[Skipped]]",
    out: Path,
    samples_per_shard: int,
    processes: int,
    overwrite: bool,
    dry_run: bool,
) -> None:
    from shards.convert import Staging, write_split
    from shards.progress import progress_bar

    staging = Staging(out, overwrite)
    for split in splits:
        staging.check(split)
    if dry_run:
        for split, count in counts.items():
            _show_skipped(skipped.get(split, ()))
            shards = -(-count // samples_per_shard)
            typer.echo(f"would write {out / split}: {count:,} samples in {_shards(shards)}")
        return
    with staging:
        reports = {}
        for split, records in splits.items():
            with progress_bar(f"{split:>8}", counts[split]) as advance:
                reports[split] = write_split(
                    records,
                    staging.path(split),
                    dataset=dataset,
                    split=split,
                    samples_per_shard=samples_per_shard,
                    processes=processes,
                    skipped=skipped.get(split, ()),
                    on_record=advance,
                )
        staging.commit()
    for split, report in reports.items():
        _show_skipped(report.skipped)
        typer.echo(_summary(out / split, report))


def _summary(path: Path, report: "SplitReport") -> str:
    skipped = f", {len(report.skipped):,} skipped (see skipped.jsonl)" if report.skipped else ""
    counts = f"{report.samples:,} images, {report.captions:,} captions, {_shards(report.shards)}"
    return f"{path}: {counts}, {report.bytes / 1e6:,.1f} MB{skipped}"


def _shards(count: int) -> str:
    return f"{count:,} shard{'s' * (count != 1)}"


def _show_skipped(skipped: "Sequence[Skipped]") -> None:
    for item in skipped[:SHOWN]:
        typer.echo(f"skipped {item.name}: {item.reason}", err=True)
    if len(skipped) > SHOWN:
        typer.echo(f"skipped {len(skipped) - SHOWN:,} more", err=True)
