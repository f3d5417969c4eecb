"""The files that commands write where the user says: what is asked of such a place, before the work begins.

One rule for all commands: a file that stands there is replaced with `--overwrite` alone; the folder is made.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from shards.atomic import replacing
from shards.errors import DataError

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the file that stands there already.")]


def check_file(
    path: Path | None, overwrite: bool, *, suffixes: tuple[str, ...] = (), option: str = "--out"
) -> None:
    """Raise `DataError` unless a file can be written to `path`, whose name ends in one of `suffixes` if any."""
    if path is None:
        return
    if suffixes and path.suffix not in suffixes:
        raise DataError(f"{option} {path}: give a file that ends in {' or '.join(suffixes)}")
    if path.is_dir():
        raise DataError(f"{option} {path}: is a folder; give a file name")
    if os.path.lexists(path):
        if not path.is_file():  # a device, a pipe: a file would take its place
            raise DataError(f"{option} {path}: is no file; give another")
        if not overwrite:
            raise DataError(f"{option} {path}: exists already; give another, or --overwrite to replace it")
    above = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    try:
        tempfile.TemporaryFile(dir=above).close()  # rights do not tell of a disk or a mount that takes nothing
    except OSError as error:
        raise DataError(f"{option} {path}: {above} cannot be written to ({error.strerror}); give another") from None


def write_file(path: Path, data: bytes) -> None:
    """Write a whole file or nothing. Raises `DataError`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as stream:
        stream.write(data)


def write_json(path: Path, document: Any) -> None:
    """Write what `as_json` gives, whole or not at all. Raises `DataError`."""
    write_file(path, as_json(document).encode())


def as_json(document: Any) -> str:
    """Numbers as they are meant: 1.8, where adding up gave 1.7999999999999998."""
    return json.dumps(_rounded(document), indent=2) + "\n"


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.12g}")
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list | tuple) else value
