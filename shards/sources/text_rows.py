"""Rows of CSV, TSV and JSON-lines files, one at a time."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from shards.errors import DataError
from shards.sources.record import Skipped
from shards.sources.text import describe, is_unicode, open_text

if TYPE_CHECKING:
    from _csv import Reader

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class TextLayout:
    """How the text files of a table are written."""

    delimiter: str | None = None
    """None: by the file's extension."""
    columns: tuple[str, ...] = ()
    """The columns' names where the file has no header line."""
    quotes: bool = True
    """Whether `"` encloses fields, or is a character like any other."""


@dataclass(frozen=True, slots=True)
class Row:
    """The wanted columns of one row."""

    path: Path
    place: str
    """Such as "line 17"."""
    values: dict[str, Any]

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.path}: {self.place}"


def text_columns(path: Path, layout: TextLayout) -> list[str]:
    """The columns that the file has; of JSON lines, those of its first line."""
    if path.suffix.lower() in JSON_LINES:
        with open_text(path, "--table") as stream:
            first = next(filter(str.strip, stream), None)
        if first is None:
            raise DataError(f"{path}: the file is empty; one JSON object a line is needed")
        value = _parse_json(first.rstrip("\r\n"))
        if not isinstance(value, dict):
            found = value if isinstance(value, _NotJson) else describe(value)
            raise DataError(f"{path}: not JSON lines: the first line is {found}; one object a line is needed")
        return list(value)
    if layout.columns:
        open_text(path, "--table").close()
        return list(layout.columns)
    with open_text(path, "--table") as stream:
        try:
            header: list[str] = next(_reader(path, layout, stream), [])
        except csv.Error as error:
            raise DataError(f"{path}: line 1, the columns' names, cannot be read ({error})") from None
    if not all(map(is_unicode, header)):
        raise DataError(f"{path}: line 1 is not UTF-8; convert the file to UTF-8")
    if not header:
        raise DataError(f"{path}: the file is empty; its first line must name the columns")
    return header


def text_rows(path: Path, wanted: list[str], layout: TextLayout) -> Iterator[Row | Skipped]:
    """The wanted columns of every row that can be read, the others as skipped, by line."""
    if path.suffix.lower() in JSON_LINES:
        yield from _json_rows(path, wanted)
        return
    columns = text_columns(path, layout)
    places = {name: columns.index(name) for name in wanted}
    with open_text(path, "--table") as stream:
        reader = _reader(path, layout, stream)
        if not layout.columns:
            next(reader)
        while True:
            first = reader.line_num + 1
            line = f"line {first}"
            where = f"{path}: {line}"
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield Skipped(where, f"not a row of CSV ({error}){_span(first, reader.line_num)}")
                continue
            if not fields:
                continue
            if len(fields) != len(columns):
                fault = f"{len(fields)} fields, but the table has {len(columns)} columns"
                yield Skipped(where, fault + _span(first, reader.line_num))
                continue
            yield Row(path, line, {name: fields[place] for name, place in places.items()})


def _span(first: int, last: int) -> str:
    """What else is lost with a row: an open quote may swallow hundreds of them."""
    return f"; lines {first} to {last} were read as one row: is a quote left open?" if last > first else ""


def _reader(path: Path, layout: TextLayout, stream: IO[str]) -> "Reader":
    delimiter = layout.delimiter or DELIMITERS.get(path.suffix.lower(), ",")
    if layout.quotes:
        return csv.reader(stream, delimiter=delimiter, strict=True)
    return csv.reader(stream, delimiter=delimiter, quoting=csv.QUOTE_NONE)


def _json_rows(path: Path, wanted: list[str]) -> Iterator[Row | Skipped]:
    with open_text(path, "--table") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            where = f"{path}: line {number}"
            value = _parse_json(line.rstrip("\r\n"))
            if isinstance(value, dict):
                yield Row(path, f"line {number}", {name: value.get(name) for name in wanted})
            elif isinstance(value, _NotJson):
                yield Skipped(where, str(value))
            else:
                yield Skipped(where, f"an object is expected, found {describe(value)}")


@dataclass(frozen=True)
class _NotJson:
    column: int
    reason: str

    def __str__(self) -> str:
        return f"not JSON at column {self.column}: {self.reason}"


def _parse_json(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        return _NotJson(error.colno, error.msg)
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        return _NotJson(1, str(error))
