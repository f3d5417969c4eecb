"""One tar that somebody wrote -> its rows of an index, and what of it cannot be used."""

import hashlib
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO

from shards.decoding import DecodeError, decoding
from shards.images import open_image
from shards.manifest import IMAGE, REGIONS
from shards.members import REGIONS as REGIONS_MEMBER
from shards.members import image_of, is_image, label_of
from shards.regions import decode_regions
from shards.shard_index import INDEX_SCHEMA, Rows, content_hash, image_id_of
from shards.sources.record import Skipped
from shards.tarwalk import (
    DamagedTarError,
    RawSample,
    compression,
    everything,
    nothing,
    open_bytes,
    samples_of,
    walk,
)

_BLOCK = 1 << 20
_GUESSED = 16
"""Tars looked into, at most, to find what their samples hold."""


@dataclass
class Scan:
    """What `scan` found in a tar."""

    rows: Rows = field(default_factory=lambda: {column: [] for column in INDEX_SCHEMA.names})
    skipped: list[Skipped] = field(default_factory=list)
    bytes: int = 0
    sha256: str = ""


def guess_holds(location: str) -> tuple[str, ...]:
    """What most of a tar's first samples hold beside captions; empty when they hold nothing.

    Raises `DamagedTarError`.
    """
    kinds = Counter(_held(sample) for sample in islice(samples_of(location, nothing), 100))
    kinds.pop((), None)
    return kinds.most_common(1)[0][0] if kinds else ()


def guess_holds_of(tars: Iterable[Path]) -> tuple[str, ...]:
    """What the samples of tars hold, by the first of them that can be read and is not empty."""
    for tar in islice(tars, _GUESSED):
        try:
            if holds := guess_holds(str(tar)):
                return holds
        except DamagedTarError:
            continue  # told with all others later
    return (IMAGE,)


def _held(sample: RawSample) -> tuple[str, ...]:
    extensions = [part.extension for part in sample.parts]
    image, regions = any(map(is_image, extensions)), REGIONS_MEMBER in extensions
    return (IMAGE,) * image + (REGIONS,) * regions


def fault_of(sample: RawSample, holds: tuple[str, ...]) -> str | None:
    """Why a sample cannot be used, as far as its members' names tell; None where they are right."""
    repeated = [name for name, count in Counter(part.extension for part in sample.parts).items() if count > 1]
    if repeated:
        return f"several members named .{repeated[0]}"
    missing = [what for what in holds if what not in _held(sample)]
    if missing:
        return f"no {' and no '.join(missing)}"
    return None


def scan(location: str, holds: tuple[str, ...], *, decode: bool) -> Scan:
    """Read a tar once, whole.

    `decode` decodes every image; else its header alone is read, for its size. Raises `DamagedTarError`.
    """
    found = Scan()
    with open_bytes(location) as stream, open_bytes(location) as again:
        if kind := compression(stream):
            raise DamagedTarError(
                f"compressed by {kind}, so its samples cannot be read at random; `itm shards reshard` rewrites it"
            )
        hashed = _Hashed(again)
        for sample in walk(stream, location, everything):
            hashed.read(sample.offset - hashed.position)
            crc32 = zlib.crc32(hashed.read(sample.size))
            row = fault_of(sample, holds) or _row(sample, holds, decode)
            if isinstance(row, str):
                found.skipped.append(Skipped(sample.name, row))
                continue
            for column, value in {**row, "crc32": crc32}.items():
                found.rows[column].append(value)
        while hashed.read(_BLOCK):
            pass
        found.bytes, found.sha256 = hashed.position, hashed.sha256.hexdigest()
    return found


def _row(sample: RawSample, holds: tuple[str, ...], decode: bool) -> dict[str, object] | str:
    """A row of the index but for its checksum, or why there is none."""
    members = sample.members
    try:
        label = label_of(members)
        if not label.captions:
            return "no caption"
        regions = dict(members).get(REGIONS_MEMBER)
        if regions is not None:  # whether they are held or not: reading a sample decodes them
            decode_regions(regions)
    except ValueError as error:
        return f"{error}"
    image = image_of(members) if IMAGE in holds else None
    width, height = 0, 0
    if image is not None:
        try:
            with decoding(), open_image(image) as opened:
                width, height = opened.size
                if decode:
                    opened.load()
        except DecodeError as error:
            return f"the image does not decode ({error})"
    content = content_hash(image if image is not None else regions or b"")
    return {
        "key": sample.name,
        "image_id": image_id_of(content) if label.image_id is None else label.image_id,
        "captions": len(label.captions),
        "offset": sample.offset,
        "size": sample.size,
        "content": content,
        "width": width,
        "height": height,
    }


class _Hashed:
    """A stream read front to back; its SHA-256 grows with it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.sha256 = hashlib.sha256()
        self.position = 0

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self.sha256.update(data)
        self.position += len(data)
        return data
