"""The subcommands that use a trained model. Each is one call of a documented function."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from shards.commands.outfile import Overwrite, check_file

Model = Annotated[
    Path,
    typer.Argument(metavar="MODEL", help="An exported model, a run (its best checkpoint on val), or a checkpoint."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and write nothing.")]


def export(
    model: Model,
    out: Annotated[Path, typer.Option(help="New folder to write.")],
    format: Annotated[
        Literal["itm", "open_clip", "transformers", "onnx"],
        typer.Option(
            help="itm: ours, for `trainer.load_model`; open_clip: both towers; transformers: the text encoder; "
            "onnx: both encoders."
        ),
    ] = "itm",
    momentum: Annotated[
        bool, typer.Option("--momentum", help="The moving average of the encoders instead of the encoders.")
    ] = False,
    dry_run: DryRun = False,
) -> None:
    """Write a trained model for others to use, and load it back to see that it gives the same."""
    from trainer.errors import RunError

    if out.exists():
        raise RunError(f"--out {out}: is there already; remove it, or give another folder")
    from trainer.export.write import export_model, find_source

    source = find_source(model)
    if dry_run:
        typer.echo(f"would export {source} to {out} as {format}")
        return
    for note in export_model(model, out, format, momentum):
        typer.echo(note)
    typer.echo(f"wrote {out}")


def embed(
    model: Model,
    data: Annotated[str, typer.Option(help="Folder of shards, such as DIR/test, or its URL.")],
    out: Annotated[Path, typer.Option(help="New folder to write.")],
    format: Annotated[
        Literal["parquet", "npy"],
        typer.Option(
            help="parquet: keys and embeddings in one table a side; npy: embeddings as matrices beside them."
        ),
    ] = "parquet",
    batch_size: Annotated[int, typer.Option(min=2, help="Images embedded at once.")] = 128,
    workers: Annotated[int, typer.Option(min=0, help="Processes that load images; 0 loads in this one.")] = 0,
    dry_run: DryRun = False,
) -> None:
    """Embed all images and captions of a folder of shards, with their keys."""
    from trainer.errors import RunError

    if out.exists():
        raise RunError(f"--out {out}: is there already; remove it, or give another folder")
    from shards.manifest import read_manifest
    from shards.progress import counted, progress_bar

    manifest = read_manifest(data)
    what = f"{counted(manifest.num_samples, 'image')} and {counted(manifest.num_captions, 'caption')} of {data}"
    if dry_run:
        typer.echo(f"would embed {what} into {out}")
        return
    from trainer.inference import load_model
    from trainer.search.embeddings import write_embeddings

    loaded = load_model(model)
    with progress_bar("embed", manifest.num_samples) as advance:
        write_embeddings(
            loaded, manifest, out, format=format, batch_size=batch_size, workers=workers, on_batch=advance
        )
    typer.echo(f"wrote {out}: {what}, {loaded.embed_dim} numbers each")


def index(
    embeddings: Annotated[Path, typer.Argument(metavar="EMBEDDINGS", help="A folder that `itm embed` wrote.")],
    out: Annotated[Path, typer.Option(help="New folder to write.")],
    of: Annotated[Literal["images", "texts"], typer.Option(help="What is to be found.")] = "images",
    kind: Annotated[
        Literal["flat", "ivf", "hnsw"],
        typer.Option(help="flat: exact; ivf, hnsw: near to it, and fast where there are millions."),
    ] = "flat",
    dry_run: DryRun = False,
) -> None:
    """Make an index of embeddings, for `itm search`."""
    from shards.progress import progress_bar
    from trainer.search.embeddings import read_about
    from trainer.search.index import build_index

    about = read_about(embeddings)
    count = getattr(about, of)
    if dry_run:
        typer.echo(f"would index {count:,} {of} of {embeddings} into {out}")
        return
    with progress_bar("index", count) as advance:
        made = build_index(embeddings, out, of, kind, advance)
    exact = "exact" if kind == "flat" else f"finds {made.recall:.1%} of the 10 nearest"
    typer.echo(f"wrote {out}: {count:,} {of}, {kind}, {exact}")


def search(
    index: Annotated[Path, typer.Argument(metavar="INDEX", help="A folder that `itm index` wrote.")],
    text: Annotated[str | None, typer.Option(help="A sentence to search for.")] = None,
    image: Annotated[Path | None, typer.Option(help="A picture's file to search for.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Results.")] = 10,
    model: Annotated[
        Path | None, typer.Option(help="The model that made the embeddings; default: where it then was.")
    ] = None,
    page: Annotated[Path | None, typer.Option(help="HTML file to write, with pictures.")] = None,
    overwrite: Overwrite = False,
    data: Annotated[
        str | None, typer.Option(help="The shards that were embedded, for --page; default: where they then were.")
    ] = None,
) -> None:
    """Find the images or captions nearest to a sentence or a picture."""
    from trainer.errors import RunError

    if (text is None) == (image is None):
        raise RunError("give either --text SENTENCE or --image FILE")
    if image is not None and not image.is_file():
        raise RunError(f"--image {image}: no such file")
    check_file(page, overwrite, option="--page")
    from trainer.inference import load_model
    from trainer.search.index import open_index
    from trainer.search.query import Query, write_page
    from trainer.search.query import search as find

    opened = open_index(index)
    about = opened.about.embeddings
    query = Query(text, image)
    results = find(load_model(model or Path(about.model)), opened, query, top)
    for result in results:
        said = f"  {result.caption}" if result.caption else ""
        typer.echo(f"{result.rank:4}  {result.score:6.3f}  {result.key}{said}")
    if page:
        from shards.manifest import read_manifest

        write_page(query, results, read_manifest(data or about.data), page)
        typer.echo(f"wrote {page}")
