"""The rows of a table -> samples: which cells count, and consecutive rows of one image become one sample."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from shards.errors import DataError
from shards.sources.images import read_image
from shards.sources.parquet_rows import parquet_rows
from shards.sources.record import Record, Skipped
from shards.sources.text import clean_captions, describe, is_int64, is_split_name, is_unicode, safe_key
from shards.sources.text_rows import Row, TextLayout, text_rows

PARQUET = (".parquet",)
MOST_CAPTIONS = 10_000
"""Of one image; more rows of one image tell that the column holds something else."""


@dataclass(frozen=True)
class Columns:
    """Which column holds what."""

    image: str = "image"
    captions: tuple[str, ...] = ("caption",)
    """A cell is a caption or a list of them."""
    image_id: str | None = None
    key: str | None = None
    """None: samples are named by the number of their first row."""
    split: str | None = None

    @property
    def all(self) -> list[str]:
        """The names of all."""
        return [name for name in (self.image, *self.captions, self.image_id, self.key, self.split) if name]


@dataclass(frozen=True)
class Table:
    """The files of a table and how to read them."""

    files: tuple[Path, ...]
    columns: Columns
    layout: TextLayout
    images: Path | None
    """Where the paths begin; None: at the folder of their file."""
    split: str
    """Of all rows, where no column tells it."""


class _UnusableRowError(Exception):
    pass


@dataclass
class _Group:
    """Consecutive rows of one image."""

    image_id: int | None
    image: Any
    key: str
    row: Row
    captions: list[str]
    rows: int = 1


def table_samples(table: Table) -> Iterator[tuple[str, Record | Skipped]]:
    """Every sample and whatever was skipped, each with its split, "" where that cannot be told."""
    group: _Group | None = None
    current, identity = "", None
    for number, row in enumerate(_rows(table)):
        if isinstance(row, Skipped):
            yield "", row
            continue
        split = row.values[table.columns.split] if table.columns.split else table.split
        if not isinstance(split, str) or not is_split_name(split):
            yield "", Skipped(row.where, f"{split!r} cannot name a split")
            continue
        try:
            found = _parse(row, number, table.columns)
        except _UnusableRowError as error:
            yield split, Skipped(row.where, str(error))
            continue
        # paths beside bytes in the file say nothing: in many such files all have the same
        same = found.image if isinstance(found.image, str) else None
        now = (split, found.image_id if table.columns.image_id else same)
        if group is not None and now[1] is not None and now == (current, identity):
            _extend(group, found, table.columns)
            continue
        if group is not None:
            yield from ((current, item) for item in _finish(group, table))
        group, current, identity = found, *now
    if group is not None:
        yield from ((current, item) for item in _finish(group, table))


def _rows(table: Table) -> Iterator[Row | Skipped]:
    for path in table.files:
        if path.suffix.lower() in PARQUET:
            yield from parquet_rows(path, table.columns.all, table.columns.image)
        else:
            yield from text_rows(path, table.columns.all, table.layout)


def _parse(row: Row, number: int, columns: Columns) -> _Group:
    image_id = _image_id(row.values[columns.image_id]) if columns.image_id else None
    key = _key(row.values[columns.key]) if columns.key else f"{number:09d}"
    captions = [text for name in columns.captions for text in _captions(row.values[name], name)]
    return _Group(image_id, _image(row.values[columns.image]), key, row, captions)


def _image(cell: object) -> object:
    if isinstance(cell, str) and cell:
        if cell.startswith(("http://", "https://")):
            raise _UnusableRowError("the image is a URL; fetch the images first, for example with img2dataset")
        if not is_unicode(cell):
            raise _UnusableRowError("the image's path is not valid UTF-8")
    elif not callable(cell):
        found = describe(cell) if cell else "nothing"
        raise _UnusableRowError(f"the path of an image is expected, found {found}")
    return cell


def _image_id(cell: object) -> int:
    value = int(cell) if isinstance(cell, str) and cell.removeprefix("-").isdecimal() and len(cell) < 30 else cell
    if not isinstance(value, int) or not is_int64(value):
        raise _UnusableRowError(f"the image id {cell!r} is not an integer of 64 bits")
    return value


def _key(cell: object) -> str:
    key = safe_key("" if cell is None else str(cell))
    if not key or not is_unicode(key):
        raise _UnusableRowError("the key is empty or not valid UTF-8")
    return key


def _captions(cell: object, column: str) -> list[str]:
    texts: list[str] = []
    for text in cell if isinstance(cell, list) else [cell]:
        if text is not None and not isinstance(text, str):
            raise _UnusableRowError(f"{column!r} holds {describe(text)}, not a text")
        texts.append(text or "")
    return texts


def _extend(group: _Group, found: _Group, columns: Columns) -> None:
    group.captions += found.captions
    group.rows += 1
    if group.rows > MOST_CAPTIONS:
        raise DataError(
            f"{found.row.where}: more than {MOST_CAPTIONS:,} rows with one "
            f"{columns.image_id or columns.image!r}; is it the right column?"
        )


def _finish(group: _Group, table: Table) -> Iterator[Record | Skipped]:
    _, captions, skipped = clean_captions(group.captions, group.row.where)
    yield from skipped
    if captions:
        load = group.image
        if isinstance(load, str):
            load = partial(read_image, table.images or group.row.path.parent, load)
        yield Record(group.key, group.image_id, tuple(captions), load)
    else:
        yield Skipped(group.row.where, "the image has no usable caption")
