"""`itm shards concepts` and `itm shards decontaminate`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shards.commands.outfile import Overwrite, check_file
from shards.errors import DataError

if TYPE_CHECKING:
    from shards.manifest import Manifest

Processes = Annotated[int, typer.Option(min=1, help="Processes that read and count, this one among them.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be written, and write nothing.")]


def concepts(
    folders: Annotated[list[str], typer.Argument(metavar="DIR", help="Folders of shards to read captions of.")],
    out: Annotated[Path, typer.Option(help="JSON file to write: words, counts and graph.")],
    size: Annotated[int, typer.Option(min=10, help="Concepts; objects, motions, properties as 7:2:1.")] = 300,
    processes: Processes = 2,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Find the concepts of AMSPS: the captions' most frequent words, and which stand together.

    Objects are nouns, motions verbs, properties adjectives; inflections count as one word. Reads all captions
    twice, and about 20,000 of them in depth, as English. The same shards give the same file.
    """
    from shards.progress import counted
    from shards.tools.concepts import TAGGED, mine_concepts, write_vocabulary
    from shards.tools.word_classes import GROUPS

    manifests = _manifests(folders)
    check_file(out, overwrite)
    samples = sum(manifest.num_samples for manifest in manifests)
    captions = sum(manifest.num_captions for manifest in manifests)
    if dry_run:
        typer.echo(f"would write {out}: {size:,} concepts of {captions:,} captions")
        return
    totals = {"count": samples, "tag": min(TAGGED, captions), "relate": samples}
    with _stages(totals) as progress:
        vocabulary = mine_concepts(manifests, size, processes=processes, progress=progress)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_vocabulary(out, vocabulary)
    found = [sum(one.group == group for one in vocabulary.concepts) for group in GROUPS]
    parts = ", ".join(counted(count, group) for group, count in zip(GROUPS, found, strict=True))
    if sum(found) < size:
        typer.echo(f"the captions have fewer words than asked for: {sum(found):,} of {size:,} concepts", err=True)
    typer.echo(f"{out}: {parts} of {counted(vocabulary.captions, 'caption')}")


def decontaminate(
    train: Annotated[str, typer.Argument(metavar="TRAIN", help="Folder of training shards.")],
    against: Annotated[list[str], typer.Option(help="Folder of test shards; may be given several times.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder to make: the training samples that are left, in the same tars.")
    ] = None,
    listing: Annotated[Path | None, typer.Option("--list", help="File to write, one JSON line a match.")] = None,
    distance: Annotated[
        int, typer.Option(min=0, max=16, help="Bits, of 64, by which the perceptual hashes of copies may differ.")
    ] = 8,
    processes: Processes = 2,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --list's file if there is one.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Find, list or leave out the training images that also stand in test sets.

    Found are equal bytes, and by perceptual hash copies that were scaled, encoded anew or cropped a little; not
    mirrored ones. Almost uniform images are compared by their bytes alone. Captions are not compared.

    Give `--out`, `--list` or both. OUT has a manifest and indexes of its own, which lead to TRAIN's tars: train
    from it directly, and keep TRAIN.
    """
    from shards.manifest import read_manifest
    from shards.tools.decontaminate import check_sets
    from shards.tools.decontaminate import decontaminate as compare

    if out is None and listing is None:
        raise DataError("give --out to write what is left, --list to list the matches, or both")
    training, tests = read_manifest(train), _manifests(against)
    check_sets(training, tests)
    if out is not None and out.exists():
        raise DataError(f"--out {out}: exists already; give another")
    check_file(listing, overwrite, option="--list")
    totals = {"tests": sum(test.num_samples for test in tests), "train": training.num_samples}
    if dry_run:
        targets = " and ".join(str(path) for path in (out, listing) if path is not None)
        typer.echo(f"would compare {totals['train']:,} images with {totals['tests']:,}, and write {targets}")
        return
    if listing is not None:
        listing.parent.mkdir(parents=True, exist_ok=True)
    with _stages(totals) as progress:
        report = compare(
            training, tests, out=out, listing=listing, distance=distance, processes=processes, progress=progress
        )
    if report.broken:
        typer.echo(f"{report.broken:,} images do not decode; they were compared by their bytes alone", err=True)
    found = f"{report.images:,} of {training.num_samples:,} images stand in a test set"
    typer.echo(f"{training.location}: {found}, {report.exact:,} of them byte by byte")
    if out is not None:
        typer.echo(f"{out}: {report.kept:,} images in {len(report.shards['name']):,} shards")


def _manifests(folders: Sequence[str]) -> "list[Manifest]":
    from shards.manifest import read_manifest

    manifests = [read_manifest(folder) for folder in folders]
    seen: dict[str, str] = {}
    for manifest in manifests:
        if manifest.fingerprint in seen:
            twin = seen[manifest.fingerprint]
            raise DataError(f"{manifest.location}: the same shards as {twin}; give each data set once")
        seen[manifest.fingerprint] = manifest.location
    return manifests


@contextmanager
def _stages(totals: dict[str, int]) -> Iterator[Callable[[str, int], None]]:
    """A progress bar a stage, each shown when its stage first reports and gone when the next one does."""
    from shards.progress import progress_bar

    with ExitStack() as stack:
        running: dict[str, Callable[[int], None]] = {}

        def advance(stage: str, count: int) -> None:
            if stage not in running:
                stack.close()
                running[stage] = stack.enter_context(progress_bar(stage, totals[stage]))
            running[stage](count)

        yield advance
