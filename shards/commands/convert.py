"""`itm shards convert FORMAT ...` and `itm shards merge`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shards.commands.options import Overwrite, writing_command

if TYPE_CHECKING:
    from shards.sources.record import Source

convert_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Convert a data set; one command a format.\n\n"
    "What cannot be used (an image that is missing or does not decode, an empty caption) is named, counted and "
    "left out. A conversion that was killed goes on when the command is repeated.",
)

Images = Annotated[Path, typer.Option(help="Folder that holds the image files.")]
SplitName = Annotated[str, typer.Option("--split", help="The split's name, where nothing else tells it.")]
Karpathy = Annotated[
    Path | None, typer.Option(help="Take the splits from this file of the Karpathy layout; `restval` joins train.")
]


def _command(read: Callable[..., "Source"]) -> Callable[..., None]:
    return convert_app.command(read.__name__)(writing_command(read))


@_command
def karpathy(
    annotations: Annotated[Path, typer.Option(help="The JSON file, such as dataset_flickr30k.json.")],
    images: Images,
) -> "Source":
    """Convert the Karpathy JSON layout (Flickr8K, Flickr30K, COCO).

    Writes OUT/train, OUT/val and OUT/test, those that the file has; COCO's `restval` joins train. An image
    that does not decode and a caption that is empty are named, counted and left out.
    """
    from shards.sources.karpathy import read_karpathy

    return read_karpathy(annotations, images)


@_command
def coco(
    annotations: Annotated[
        list[Path], typer.Option(help="A captions file, such as captions_train2014.json; repeat for more.")
    ],
    images: Annotated[
        list[Path], typer.Option(help="Its image folder; repeat it in the same order, or give one for all.")
    ],
    karpathy: Karpathy = None,
    split: Annotated[
        str | None, typer.Option(help="The split of all images; without it, the file's name tells train or val.")
    ] = None,
) -> "Source":
    """Convert COCO's own caption files, of 2014 or 2017.

    With `--karpathy dataset_coco.json` the splits are the Karpathy ones, matched by COCO image id. Images that only
    one side knows are counted and listed.

    Example: itm shards convert coco --annotations captions_train2014.json --images train2014 --annotations
    captions_val2014.json --images val2014 --karpathy dataset_coco.json --out coco
    """
    from shards.sources.coco import read_coco

    return read_coco(annotations, images, karpathy, split)


@_command
def flickr30k(
    token: Annotated[Path, typer.Option(help="results_20130124.token, or Flickr8k.token.txt.")],
    images: Images,
    karpathy: Karpathy = None,
    train_list: Annotated[Path | None, typer.Option(help="File of image names, one a line, for train.")] = None,
    val_list: Annotated[Path | None, typer.Option(help="The same for val.")] = None,
    test_list: Annotated[Path | None, typer.Option(help="The same for test.")] = None,
    split: SplitName = "train",
) -> "Source":
    """Convert the token file of Flickr30K or Flickr8K.

    The splits come from --karpathy, or from the lists of image names; without either all images are --split.
    """
    from shards.sources.flickr30k import read_flickr30k

    lists = {"train": train_list, "val": val_list, "test": test_list}
    given = {name: path for name, path in lists.items() if path is not None}
    return read_flickr30k(token, images, split=split, lists=given, karpathy=karpathy)


@_command
def table(
    table: Annotated[
        list[Path],
        typer.Option(help="A .csv, .tsv, .jsonl or .parquet file, or a folder of such; repeat for more."),
    ],
    images: Annotated[
        Path | None, typer.Option(help="Folder that the paths are below; without it, each file's own.")
    ] = None,
    image_column: Annotated[str, typer.Option(help="Path of the image, or, in Parquet, its bytes.")] = "image",
    caption_column: Annotated[
        list[str] | None, typer.Option(help="A caption or a list of them; repeat for more. [default: caption]")
    ] = None,
    image_id_column: Annotated[
        str | None, typer.Option(help="An integer; rows of one id are one image. Without it, an id is hashed.")
    ] = None,
    key_column: Annotated[str | None, typer.Option(help="Names the samples; without it, the row's number.")] = None,
    split_column: Annotated[str | None, typer.Option(help="Tells the split of each row.")] = None,
    split: SplitName = "train",
    delimiter: Annotated[str | None, typer.Option(help="Between the fields; without it, by the extension.")] = None,
    columns: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="The columns' names, for text without a header line.")
    ] = None,
    quotes: Annotated[
        bool, typer.Option(help='Whether " encloses fields, or is a character like any other.')
    ] = True,
) -> "Source":
    """Convert a table: CSV, TSV, JSON lines or Parquet, of any length.

    Consecutive rows of one image (one id, or else one path) become one sample with all their captions. Images
    within Parquet may be bytes or {bytes, path}; then --seed is refused. Rows that cannot be used are left out, by
    file and line. --key-column and --split-column cost a pass over the table first, and each split, in each --part,
    is a pass over all rows.
    """
    from shards.sources.table import read_table
    from shards.sources.table_samples import Columns
    from shards.sources.text_rows import TextLayout

    captions = tuple(caption_column or ["caption"])
    names = Columns(image_column, captions, image_id_column, key_column, split_column)
    layout = TextLayout(
        "\t" if delimiter == "\\t" else delimiter, tuple(columns.split(",")) if columns else (), quotes
    )
    return read_table(table, images, names, split=split, layout=layout)


@_command
def folder(
    root: Annotated[Path, typer.Option(help="Folder of images, at any depth, with their captions beside them.")],
    splits: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="Sub-folders to convert, each as a split of its name.")
    ] = None,
    split: SplitName = "train",
) -> "Source":
    """Convert a folder of images with a file of captions beside each.

    0001.jpg goes with 0001.txt, one caption a line, or with 0001.json, {"caption": "..."} or {"captions": [...]}.
    Images without captions and captions without image are listed.
    """
    from shards.sources.folder import read_folder

    return read_folder(root, splits.split(",") if splits else None, split)


@_command
def scan(
    root: Annotated[Path, typer.Option(help="Folder with SPLIT_ims.npy, SPLIT_caps.txt and SPLIT_ids.txt.")],
    images: Annotated[
        Path | None, typer.Option(help="Folder of the photos, to have both; id_mapping.json names them.")
    ] = None,
    splits: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="Those to convert, as the files name them; else all.")
    ] = None,
    captions_each: Annotated[int, typer.Option(min=1, help="Captions an image.")] = 5,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Name of the data set; coco and flickr30k have protocols of evaluation. Else the folder's."
        ),
    ] = None,
) -> "Source":
    """Convert SCAN's precomputed region features, alone or with the photos.

    The split dev becomes val, and testall test: of COCO, convert --splits train,dev,testall. Whether the array
    holds each image once or once a caption is found out, and told.
    """
    from shards.sources.scan import read_scan

    source = read_scan(root, images, splits.split(",") if splits else None, captions_each, dataset)
    layouts = source.identity["layouts"]
    assert isinstance(layouts, dict)
    for name, layout in layouts.items():
        typer.echo(f"{name}: {layout}", err=True)
    return source


def merge(
    out: Annotated[Path, typer.Argument(help="The --out of a conversion that ran with --part.")],
    overwrite: Overwrite = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say whether all parts are there, and move nothing.")
    ] = False,
) -> None:
    """Join the parts of a conversion (`itm shards convert ... --part I/N`) and move its splits into place."""
    from shards.commands.write import merge_parts

    merge_parts(out, overwrite, dry_run)
