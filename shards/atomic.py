"""Files that are complete or absent: written under another name, then renamed into place."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: Path, *, unique: bool = False) -> Iterator[IO[bytes]]:
    """Open a file for writing that appears at `path` only when the block ends without an error.

    `unique` is for a file that several processes may write at once: each under a name of its own, the last
    one wins, and what a killed one leaves is the caller's to delete.
    """
    partial = path.with_name(f".{path.name}{'.' + secrets.token_hex(4) if unique else ''}.partial")
    try:
        with partial.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def building(path: Path) -> Iterator[Path]:
    """A folder to fill, which appears at `path` only when the block ends without an error.

    `path` must not exist. What a killed call left is deleted.
    """
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(path)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Have the names in `folder` survive a power cut, as `fsync` does the bytes of a file."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
