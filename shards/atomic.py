"""Files that are complete or absent: written under another name, then renamed into place."""

import errno
import os
import secrets
import shutil
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from shards.errors import DataError

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def replacing(path: Path, *, unique: bool = False) -> Iterator[IO[bytes]]:
    """Open a file for writing that appears at `path` only when the block ends without an error.

    `unique` is for a file that several processes may write at once: each under a name of its own, the last
    one wins, and what a killed one leaves is the caller's to delete.

    Raises `DataError` when the file cannot be written.
    """
    partial = path.with_name(f".{path.name}{'.' + secrets.token_hex(4) if unique else ''}.partial")
    try:
        with _told(path, _NO_ROOM):  # of other errors within the block, another file may be the cause
            with _told(path):
                stream = partial.open("wb")
            with stream:
                yield stream
                with _told(path):
                    stream.flush()
                    os.fsync(stream.fileno())
            with _told(path):
                partial.replace(path)
                sync_folder(path.parent)
    finally:
        with suppress(OSError):  # what cannot be tidied up does not hide what went wrong before
            partial.unlink(missing_ok=True)


@contextmanager
def building(path: Path) -> Iterator[Path]:
    """A folder to fill, which appears at `path` only when the block ends without an error.

    `path` must not exist. What a killed call left is deleted. Raises `DataError` when it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with _told(path):
        partial.mkdir(parents=True)
    try:
        yield partial
        with _told(path):
            partial.rename(path)
            sync_folder(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _told(path: Path, numbers: Container[int] | None = None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if numbers is not None and error.errno not in numbers:
            raise
        raise DataError(
            f"{path}: cannot be written ({error.strerror}); make room or get the right to write there, or give "
            "another place"
        ) from None


def sync_folder(folder: Path) -> None:
    """Have the names in `folder` survive a power cut, as `fsync` does the bytes of a file."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
