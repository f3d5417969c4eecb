"""Tables of images and captions: CSV, TSV, JSON lines and Parquet, one file or many, of any length.

The image column holds paths or, in Parquet, the encoded bytes, plain or as {bytes, path}. Consecutive rows of one
image are one sample with all their captions: rows of one image id where there is such a column, else rows of one
path. Rows are read one after another and never held. A key or a split column costs a pass over the table first, and
8 bytes a sample; each split is then a pass over all rows.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from shards.errors import DataError
from shards.repeats import Repeats
from shards.seen import hash64
from shards.sources.images import check_images
from shards.sources.parquet_rows import bytes_column, open_parquet
from shards.sources.record import Record, Skipped, Source, Split
from shards.sources.stream import Stream
from shards.sources.table_samples import PARQUET, Columns, Table, table_samples
from shards.sources.text import check_split_name, file_identity
from shards.sources.text_rows import DELIMITERS, JSON_LINES, TextLayout, text_columns

EXTENSIONS = (*DELIMITERS, *JSON_LINES, *PARQUET)
MOST_SPLITS = 50
_COLUMNS, _LAYOUT = Columns(), TextLayout()


def read_table(
    tables: list[Path],
    images: Path | None = None,
    columns: Columns = _COLUMNS,
    *,
    split: str = "train",
    layout: TextLayout = _LAYOUT,
) -> Source:
    """Open a table of one or several files, or of all in a folder, in sorted order.

    Paths are below `images`, or else below the folder of their file. Rows that cannot be used are skipped, by file
    and line. Raises `DataError` for a column that a file lacks, and for two samples with one key in one split.
    """
    check_split_name(split, "--split")
    if layout.delimiter is not None and len(layout.delimiter) != 1:
        raise DataError(f"--delimiter {layout.delimiter!r}: one character is expected")
    if images is not None:
        check_images(images)
    table = Table(tuple(_files(tables)), columns, layout, images, split)
    for path in table.files:
        _check_columns(path, table)
    identity: dict[str, object] = {
        "format": "table",
        "files": [file_identity(path) for path in table.files],
        "images": str(images.absolute()) if images else None,
        "columns": vars(columns),
        "layout": vars(layout),
        "split": split,
    }
    if next(table_samples(table), None) is None:
        raise DataError(f"{', '.join(map(str, table.files[:3]))}: no row, only the names of the columns")
    counts: Mapping[str, int | None] = {split: _count(table)}
    if columns.key or columns.split:
        counts = _survey(table)
    first = next(iter(counts))
    splits = [Split(name, Stream(partial(_items, table, name, name == first)), n) for name, n in counts.items()]
    inputs = (*table.files, *([images] if images else []))
    return Source(
        tables[0].absolute().stem, splits, identity, inputs, any(_holds_images(path, table) for path in table.files)
    )


def _files(tables: list[Path]) -> Iterator[Path]:
    for table in tables:
        found = [table]
        if table.is_dir():
            found = sorted(path for path in table.iterdir() if path.suffix.lower() in EXTENSIONS)
            if not found:
                raise DataError(f"--table {table}: no file of {', '.join(EXTENSIONS)} in this folder")
        for path in found:
            if path.suffix.lower() == ".json":
                raise DataError(
                    f"--table {path}: JSON lines are read, not JSON; `jq -c '.[]'` makes them of a list"
                )
            if path.suffix.lower() not in EXTENSIONS:
                raise DataError(f"--table {path}: the file's name must end in one of {', '.join(EXTENSIONS)}")
            yield path


def _check_columns(path: Path, table: Table) -> None:
    if path.suffix.lower() in PARQUET:
        with open_parquet(path) as file:
            there = file.schema_arrow.names
    else:
        there = text_columns(path, table.layout)
    for name in table.columns.all:
        if name not in there:
            raise DataError(f"{path}: no column {name!r}; its columns are {', '.join(map(repr, there))}")
        if there.count(name) > 1:
            raise DataError(f"{path}: {there.count(name)} columns named {name!r}; their names must differ")


def _count(table: Table) -> int | None:
    """The number of samples where each row is one, None where only reading tells."""
    rows = 0
    for path in table.files:
        if table.columns.image_id or not _holds_images(path, table):
            return None
        with open_parquet(path) as file:
            rows += file.metadata.num_rows
    return rows


def _holds_images(path: Path, table: Table) -> bool:
    if path.suffix.lower() not in PARQUET:
        return False
    with open_parquet(path) as file:
        return bytes_column(file.schema_arrow, table.columns.image) is not None


def _survey(table: Table) -> dict[str, int]:
    """The number of samples a split, from a pass over the table; no key may stand twice in a split."""
    keys: dict[str, Repeats] = {}
    reason = ""
    for name, item in table_samples(table):
        if isinstance(item, Skipped):
            reason = reason or f"; the first left out: {item.name}: {item.reason}"
            continue
        keys.setdefault(name, Repeats()).add(item.key)
        if len(keys) > MOST_SPLITS:
            raise DataError(f"--split-column {table.columns.split}: more than {MOST_SPLITS} different splits in it")
    if not keys:
        raise DataError(f"{table.files[0]}: no usable row{reason}")
    for name, found in keys.items():
        if twice := found.found():
            samples = (item for where, item in table_samples(table) if where == name and isinstance(item, Record))
            key = next(item.key for item in samples if hash64(item.key) in twice)
            raise DataError(
                f"--key-column {table.columns.key}: two samples of split {name} have the key {key} (rows of one "
                "image must follow each other)"
            )
    return {name: len(found) for name, found in keys.items()}


def _items(table: Table, split: str, orphans: bool) -> Iterator[Record | Skipped]:
    """The items of one split; `orphans` adds the rows of which the split cannot be told."""
    for name, item in table_samples(table):
        if name == split or (orphans and not name):
            yield item
