"""`itm shards index` and `itm shards reshard`: tars that stand there already."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from shards.commands.options import writing_command
from shards.errors import DataError

if TYPE_CHECKING:
    from shards.publish import SplitReport
    from shards.sources.record import Source

Locations = Annotated[
    list[str],
    typer.Argument(metavar="LOCATION", help="Folders of tars, tars, or patterns such as 'DIR/{00000..00041}.tar'."),
]
SplitName = Annotated[str | None, typer.Option(help="Name of the split; by default the folder's.")]
DatasetName = Annotated[str | None, typer.Option(help="Name of the data set; by default the parent folder's.")]
Processes = Annotated[int, typer.Option(min=1, help="Processes that work, this one among them.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what stands there already.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be written, and write nothing.")]


def index(
    locations: Locations,
    out: Annotated[Path | None, typer.Option(help="Folder of the manifest; by default the tars'.")] = None,
    split: SplitName = None,
    dataset: DatasetName = None,
    holds: Annotated[
        Literal["image", "regions", "image,regions"] | None,
        typer.Option(
            help="What each sample must have beside captions; by default what most of the first ones have."
        ),
    ] = None,
    decode: Annotated[bool, typer.Option("--decode", help="Decode every image; leave out what does not.")] = False,
    skip_damaged: Annotated[bool, typer.Option("--skip-damaged", help="Leave damaged tars out.")] = False,
    processes: Processes = 2,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Make a manifest for tars that others wrote: img2dataset's, webdataset's, open_clip's.

    The tars stay as they are and are read whole, once. A sample is consecutive members `KEY.jpg` (or png, webp,
    ...) with its captions: `captions` in `KEY.json`, else `KEY.txt`, else `caption` in `KEY.json`. Its image id is
    `image_id` in the JSON, else a hash of the image. Samples without an image or a caption are left out, and
    listed in `skipped.jsonl`. Called again after an interruption, it goes on where it was.
    """
    from shards.commands.write import show_skipped
    from shards.progress import counted, progress_bar
    from shards.tools.index import Plan, check, index_tars
    from shards.tools.locate import find_tars

    tars = find_tars(locations)
    folders = {tar.absolute().parent for tar in tars}
    if out is None and len(folders) > 1:
        raise DataError("the tars lie in several folders; give the manifest one of its own with --out")
    folder = tars[0].absolute().parent
    plan = Plan(
        tars,
        out or tars[0].parent,
        dataset or folder.parent.name or "tars",
        split or folder.name or "tars",
        holds=tuple(holds.split(",")) if holds else None,
        decode=decode,
        skip_damaged=skip_damaged,
        overwrite=overwrite,
    )
    check(plan)
    if dry_run:
        size = sum(tar.stat().st_size for tar in tars)
        typer.echo(f"would index {counted(len(tars), 'tar')}, {size / 1e6:,.1f} MB, into {plan.out}")
        return
    try:
        with progress_bar("index", len(tars)) as advance:
            report = index_tars(plan, processes=processes, on_shard=lambda: advance(1))
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on where it was") from None
    show_skipped(report.first_skipped, report.skipped)
    typer.echo(_summary(plan.out, report))


def read_for_reshard(
    locations: Locations,
    split: SplitName = None,
    dataset: DatasetName = None,
    skip_damaged: Annotated[
        bool,
        typer.Option(
            "--skip-damaged",
            help="Of damaged tars, take what stands before the damage; of compressed ones, before where it shows.",
        ),
    ] = False,
) -> "Source":
    """Write tars anew as shards with a manifest: other sizes, another order, smaller images.

    Reads folders of shards with their manifests (a sample that the index leaves out stays out), or else plain tars
    as `itm shards index` understands them, `.tar.gz` too. Images keep their bytes unless they are to be made
    smaller; captions, their ids, regions and image ids are kept; other fields and members are not. Keys lose
    dots and slashes, and repeated ones get a number. The samples of a compressed tar wait in memory for their
    shard, so many processes with large shards need much of it.
    """
    from shards.sources.tars import read_tars

    return read_tars(locations, split, dataset, skip_damaged=skip_damaged)


reshard = writing_command(read_for_reshard)


def _summary(folder: Path, report: "SplitReport") -> str:
    from shards.progress import counted

    left_out = f", {report.skipped:,} skipped (see skipped.jsonl)" if report.skipped else ""
    counts = [(report.samples, "sample"), (report.captions, "caption"), (report.shards, "shard")]
    listed = ", ".join(counted(number, noun) for number, noun in counts)
    return f"{folder}: {listed}, {report.bytes / 1e6:,.1f} MB{left_out}"
