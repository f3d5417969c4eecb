"""A tar, from its first header to its end mark -> its samples, wherever the tar came from.

Damage is never taken for the end: `tarfile` ends its iteration quietly at a broken header, this does not.
Nothing is extracted to a disk, links are not followed, so names do no harm, whatever they are.
"""

import bz2
import gzip
import io
import lzma
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from shards.errors import DataError
from shards.members import Member, split_name
from shards.storage.location import is_remote

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


# not tarfile's own stream mode: it ends with the first of several compressed pieces, and compares no checksum
_OPEN: dict[str, Callable[..., Any]] = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}


class DamagedTarError(Exception):
    """The tar ends early, or what stands in it is no tar; the text says where."""


@dataclass(frozen=True, slots=True)
class Part:
    """One member of a sample."""

    extension: str
    start: int
    """Where its bytes begin in the tar."""
    size: int
    data: bytes | None
    """None where it was not asked for."""


@dataclass(frozen=True, slots=True)
class RawSample:
    """Consecutive members with one key."""

    key: str
    offset: int
    """Where the first member's header begins in the tar; long names have headers of their own, which count."""
    size: int
    """Bytes up to the end of the last member, padding included."""
    parts: tuple[Part, ...]

    @property
    def members(self) -> list[Member]:
        """Those that were read."""
        return [(part.extension, part.data) for part in self.parts if part.data is not None]

    @property
    def name(self) -> str:
        """The key as text that can be written anywhere: undecodable bytes of it are replaced."""
        return self.key.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


class _StrictInfo(tarfile.TarInfo):
    """A header that raises where it is broken, instead of ending the archive."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> "_StrictInfo":
        try:
            header = super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the end mark
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {tarfile_.offset:,}") from None
        if header.size < 0:
            raise tarfile.ReadError(f"negative size at byte {tarfile_.offset:,}")
        return header


def compression(stream: IO[bytes]) -> str | None:
    """By what the stream is compressed, None for a plain tar. It must stand at its beginning, and is put back."""
    first = stream.read(8)
    stream.seek(0)
    return next((name for magic, name in _COMPRESSED.items() if first.startswith(magic)), None)


def open_bytes(location: str) -> IO[bytes]:
    """Open a tar for reading at random. Raises `DataError`."""
    if is_remote(location):
        raise DataError(f"{location}: tars behind URLs cannot be read here; copy them to a local disk")
    try:
        return Path(location).open("rb")
    except OSError as error:
        raise DataError(f"{location}: cannot be opened ({error.strerror})") from None


@contextmanager
def _damage(location: str) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DamagedTarError(str(error)) from None
    except OSError as error:
        if error.errno is None:  # of a decompressor, not of the system
            raise DamagedTarError(str(error)) from None
        raise DataError(f"{location}: cannot be read ({error.strerror})") from None
    except (ValueError, IndexError, OverflowError) as error:  # what tarfile lets through from mangled headers
        raise DamagedTarError(f"a mangled header ({error})") from None


def walk(
    stream: IO[bytes], location: str, wanted: Callable[[str], bool], *, packed: bool = False
) -> Iterator[RawSample]:
    """Yield the samples of an open tar in order, reading the bytes of members whose extension is `wanted`.

    `packed` says that the stream decompresses, so that its length is not known. Raises `DamagedTarError`.
    """
    with _damage(location):
        length = None if packed else stream.seek(0, os.SEEK_END)
        if length is not None:
            stream.seek(0)
        archive = tarfile.open(fileobj=stream, mode="r:", tarinfo=_StrictInfo)  # noqa: SIM115  closed below
    with archive:
        key, offset, end = None, 0, 0
        parts: list[Part] = []
        while True:
            with _damage(location):
                info = archive.next()
                archive.members = []  # type: ignore[attr-defined]  # else every header stays in memory
                if info is None:
                    break
                if info.offset < end:
                    raise tarfile.ReadError(f"overlapping members at byte {info.offset:,}")
                if length is not None and info.offset_data + info.size > length:
                    raise tarfile.ReadError(f"the file ends within the member at byte {info.offset:,}")
                names = split_name(info.name) if info.isreg() and not info.issparse() else None
                if names is None:
                    continue
                data = None
                if wanted(names[1]):
                    data = archive.extractfile(info).read()  # type: ignore[union-attr]
                    if len(data) != info.size:
                        raise tarfile.ReadError("unexpected end of data")
            if names[0] != key:
                if key is not None:
                    yield RawSample(key, offset, end - offset, tuple(parts))
                key, offset, parts = names[0], info.offset, []
            parts.append(Part(names[1], info.offset_data, info.size, data))
            end = info.offset_data + info.size + -info.size % tarfile.BLOCKSIZE
        if key is not None:
            yield RawSample(key, offset, end - offset, tuple(parts))
        with _damage(location):
            _check_end(stream, archive.offset)


def _check_end(stream: IO[bytes], position: int) -> None:
    """Behind the end mark stand zeros alone; else it is a hole in the middle of the archive.

    Reading on to the end of a compressed stream has its checksum compared, too.
    """
    while data := stream.read(1 << 20):
        if data.count(0) != len(data):
            raise tarfile.ReadError(
                f"members behind the end mark at byte {position:,}: damaged, or several tars in one"
            )


def samples_of(location: str, wanted: Callable[[str], bool]) -> Iterator[RawSample]:
    """Open a tar, compressed or not, and yield its samples as `walk` does; a compressed one is read whole.

    Raises `DamagedTarError`, and `DataError` where it cannot be opened.
    """
    with open_bytes(location) as stream:
        packed = compression(stream)
        if packed is None:
            yield from walk(stream, location, wanted)
            return
        if packed not in _OPEN:
            raise DataError(
                f"{location}: compressed by {packed}, which cannot be read here; decompress it with `zstd -d`"
            )
        with _OPEN[packed](stream) as unpacked:
            yield from walk(unpacked, location, everything, packed=True)


def samples_in(data: bytes) -> list[RawSample]:
    """The samples in a piece of a tar, such as the bytes that a row of an index spans: one, when all is well.

    Raises `DamagedTarError`.
    """
    return list(walk(io.BytesIO(data + bytes(2 * tarfile.BLOCKSIZE)), "", everything))


def everything(_extension: str) -> bool:
    """Read all members."""
    return True


def nothing(_extension: str) -> bool:
    """Read headers alone."""
    return False
