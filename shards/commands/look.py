"""`itm shards verify`, `stats` and `inspect`: folders of shards, looked at."""

from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Annotated

import typer

from shards.commands.outfile import Overwrite, check_file, write_file, write_json
from shards.errors import DataError

SHOWN = 5
"""Faulty samples of a shard named on the terminal; all of them stand in the file that --out names."""

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A folder of shards with its manifest.")]
Processes = Annotated[int, typer.Option(min=1, help="Processes that work, this one among them.")]


def verify(
    folder: Folder,
    decode: Annotated[bool, typer.Option(help="Decode every image.")] = True,
    out: Annotated[Path | None, typer.Option(help="JSON file to write with all that was found.")] = None,
    processes: Processes = 2,
    overwrite: Overwrite = False,
) -> None:
    """Check every shard and sample against the manifest: sizes, checksums, places, captions, images.

    One line a fault names the shard and the sample; with any fault the exit code is 1. Images that stand more than
    once, and tars that the manifest does not list, are warnings alone.
    """
    from shards.manifest import read_manifest
    from shards.progress import counted, progress_bar
    from shards.tools.verify import verify as check

    check_file(out, overwrite, suffixes=(".json",))
    total = len(read_manifest(folder, check_shards=False).names)
    with progress_bar("verify", total) as advance:
        found = check(str(folder), decode=decode, processes=processes, on_shard=lambda: advance(1))
    for shard, faults in groupby(found.faults, key=attrgetter("shard")):
        samples = 0
        for fault in faults:
            samples += fault.sample is not None
            if samples <= SHOWN:
                typer.echo(str(fault), err=True)
        if samples > SHOWN:
            typer.echo(f"{shard}: {samples - SHOWN:,} more samples; --out names them all", err=True)
    for warning in found.warnings:
        typer.echo(f"warning: {warning}", err=True)
    if out is not None:
        write_json(out, found.as_dict())
    manifest = found.manifest
    counts = [(total, "shard"), (manifest.num_samples, "sample"), (manifest.num_captions, "caption")]
    verdict = counted(len(found.faults), "fault") if found.faults else "whole"
    typer.echo(
        f"{folder}: {', '.join(counted(*each) for each in counts)}: {verdict}"
        + ("" if decode else ", images not decoded")
    )
    if found.faults:
        raise typer.Exit(1)


def stats(
    folder: Folder,
    out: Annotated[
        Path | None, typer.Option(help="Write all figures to a .json file, or a page with charts to an .html file.")
    ] = None,
    processes: Processes = 2,
    overwrite: Overwrite = False,
) -> None:
    """Tell what a folder of shards holds: captions, words, image sizes, copies.

    Images are not decoded: their sizes stand in the index. Copies of images are those with the same bytes.
    """
    from shards.manifest import read_manifest
    from shards.progress import progress_bar
    from shards.tools.stats import folder_stats
    from shards.tools.stats_page import stats_page
    from shards.tools.stats_text import text

    check_file(out, overwrite, suffixes=(".json", ".html"))
    manifest = read_manifest(folder)
    with progress_bar("stats", len(manifest.names)) as advance:
        found = folder_stats(manifest, processes=processes, on_shard=lambda: advance(1))
    typer.echo(text(found))
    if out is not None and out.suffix == ".html":
        write_file(out, stats_page(found))
    elif out is not None:
        write_json(out, found)


def inspect(
    folder: Folder,
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("inspect.html"),
    samples: Annotated[int, typer.Option(min=1, help="Samples shown, at most.")] = 60,
    seed: Annotated[int, typer.Option(min=0, help="Another seed draws other samples.")] = 0,
    shard: Annotated[str | None, typer.Option(metavar="NAME", help="Only samples of this shard.")] = None,
    key: Annotated[str | None, typer.Option(help="Only samples with this key.")] = None,
    grep: Annotated[
        str | None, typer.Option(metavar="WORD", help="Only samples with this in a caption, in any case.")
    ] = None,
    overwrite: Overwrite = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be written, and write nothing.")
    ] = False,
) -> None:
    """Show samples drawn at random as one HTML page: pictures, captions, keys, sizes, image ids.

    The page holds its pictures and needs no other file. What does not decode is shown with the reason.
    """
    from shards.manifest import read_manifest
    from shards.progress import counted, progress_bar
    from shards.tools.choose import Choice, choose
    from shards.tools.inspect import contact_sheet

    if key is not None and grep is not None:
        raise DataError("--key and --grep: give one of them")
    check_file(out, overwrite, suffixes=(".html",))
    manifest = read_manifest(folder)
    choice = Choice(samples, seed, shard, key, grep)
    if dry_run:
        typer.echo(f"would write {out} with {counted(len(choose(manifest, choice)), 'sample')}")
        return
    with progress_bar("inspect", None) as advance:
        page, count = contact_sheet(manifest, choice, advance)
    write_file(out, page)
    typer.echo(f"{out}: {counted(count, 'sample')}, {len(page) / 1e6:,.1f} MB")
