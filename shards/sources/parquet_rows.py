"""Rows of Parquet files, without their images, and those images' bytes when a worker asks for them."""

from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shards.errors import DataError
from shards.sources.text_rows import Row

BATCH = 1024
"""Rows read at once, without images."""
IMAGES = 32
"""Images read at once: a row group may hold more than fits into memory."""


def open_parquet(path: Path) -> pq.ParquetFile:
    """Raises `DataError` for a file that is missing or damaged."""
    try:
        return pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
    except FileNotFoundError:
        raise DataError(f"--table {path}: no such file") from None
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"--table {path}: cannot be read as Parquet ({error})") from None


def bytes_column(schema: pa.Schema, image: str) -> str | None:
    """The column that holds the images' bytes, where `image` is one or a struct with one; None: it holds paths."""
    kind = schema.field(image).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return f"{image}.bytes"
    return image if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) else None


def parquet_rows(path: Path, wanted: list[str], image: str) -> Iterator[Row]:
    """The wanted columns of every row; where the images' bytes lie in the file, `image` is what loads them."""
    with open_parquet(path) as file:
        column = bytes_column(file.schema_arrow, image)
        others = [name for name in wanted if name != image or column is None]
        number = 0
        for group in range(file.num_row_groups):
            try:
                for row, values in enumerate(_values(file, group, others)):
                    if column is not None:
                        values[image] = partial(_cell, path, group, row, column)
                    yield Row(path, f"row {number}", values)
                    number += 1
            except (OSError, pa.ArrowException) as error:  # Arrow tells of damage by either
                raise DataError(f"--table {path}: cannot be read from row {number} on ({error})") from None


def _values(file: pq.ParquetFile, group: int, names: list[str]) -> Iterator[dict[str, Any]]:
    for batch in file.iter_batches(BATCH, row_groups=[group], columns=names):
        columns = [batch.column(name).to_pylist() for name in names]
        yield from (dict(zip(names, cells, strict=True)) for cells in zip(*columns, strict=True))


class _Images:
    """Reads the images of one row group forwards, a few at a time; a step backwards begins anew."""

    def __init__(self, path: Path, group: int, column: str) -> None:
        self.path, self.group, self.column = path, group, column
        self._first, self._cells = 0, pa.array([], pa.binary())
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._restart()

    def _restart(self) -> None:
        self._first, self._cells = 0, pa.array([], pa.binary())
        file = open_parquet(self.path)
        self._batches = file.iter_batches(IMAGES, row_groups=[self.group], columns=[self.column])

    def read(self, row: int) -> bytes | None:
        if row < self._first:
            self._restart()
        while row >= self._first + len(self._cells):
            self._first += len(self._cells)
            cells = next(self._batches).column(0)
            self._cells = cells.field("bytes") if pa.types.is_struct(cells.type) else cells
        value = self._cells[row - self._first].as_py()
        return None if value is None else bytes(value)


_images = lru_cache(maxsize=2)(_Images)


def _cell(path: Path, group: int, row: int, column: str) -> bytes:
    try:
        value = _images(path, group, column).read(row)
    except pa.ArrowException as error:
        raise ValueError(f"{path}: {error}") from None
    if value is None:
        raise ValueError("the table holds no bytes for it")
    return value
