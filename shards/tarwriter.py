"""Samples -> a plain WebDataset tar with an index of where each sample lies."""

import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from shards.atomic import replacing
from shards.shard_index import INDEX_SCHEMA, Rows, content_hash, image_id_of, write_index
from shards.sources.record import Record, Regions


@dataclass(frozen=True)
class Sample:
    """A record whose parts were read, and whose image was decoded once to see that it can be."""

    record: Record
    image: bytes | None
    extension: str
    width: int
    height: int
    regions: Regions | None = None


@dataclass(frozen=True)
class Encoded:
    """A sample as the bytes that stand in the tar, and its row of the index but for the offset."""

    data: bytes
    row: dict[str, object]


def encode(sample: Sample) -> Encoded:
    """The sample's members, headers included: the image, the regions, and `json` with the captions."""
    image = [] if sample.image is None else [(sample.extension, sample.image)]
    regions = [] if sample.regions is None else [("regions.npy", _npy(sample.regions))]
    parts = image + regions
    content = content_hash(parts[0][1])
    record = sample.record
    image_id = record.image_id if record.image_id is not None else image_id_of(content)
    label: dict[str, object] = {"image_id": image_id, "captions": list(record.captions)}
    if record.caption_ids:
        label["caption_ids"] = list(record.caption_ids)
    parts.append(("json", json.dumps(label, ensure_ascii=False).encode()))
    data = b"".join(_member(f"{record.key}.{extension}", part) for extension, part in parts)
    row = {
        "key": record.key,
        "image_id": image_id,
        "captions": len(record.captions),
        "size": len(data),
        "crc32": zlib.crc32(data),
        "content": content,
        "width": sample.width,
        "height": sample.height,
    }
    return Encoded(data, row)


def _npy(array: Regions) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def _member(name: str, data: bytes) -> bytes:
    header = tarfile.TarInfo(name)  # times and owners stay 0: the same samples give the same bytes
    header.size, header.mode = len(data), 0o444
    return header.tobuf(tarfile.PAX_FORMAT) + data + bytes(-len(data) % tarfile.BLOCKSIZE)


def _tar_bytes(members: int) -> int:
    """The size of a tar whose members take `members` bytes: an end mark follows, rounded up to whole records."""
    return -(-(members + 2 * tarfile.BLOCKSIZE) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


class ShardWriter:
    """One tar that is being written; see `writing_shard`."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.rows: Rows = {column: [] for column in INDEX_SCHEMA.names}
        self.bytes = 0
        self._stream = stream
        self._sha256 = hashlib.sha256()

    def has_room(self, sample: Encoded, max_bytes: int | None) -> bool:
        """Whether the whole tar would stay within `max_bytes`; an empty one takes any sample."""
        return max_bytes is None or not self.bytes or _tar_bytes(self.bytes + len(sample.data)) <= max_bytes

    def add(self, sample: Encoded) -> None:
        for column, value in {**sample.row, "offset": self.bytes}.items():
            self.rows[column].append(value)
        self._write(sample.data)

    def _write(self, data: bytes) -> None:
        self._stream.write(data)
        self._sha256.update(data)
        self.bytes += len(data)

    def end(self) -> None:
        self._write(bytes(_tar_bytes(self.bytes) - self.bytes))

    def row(self, name: str, index_sha256: str) -> dict[str, object]:
        """The ended shard's row of the shard table."""
        return {
            "name": name,
            "path": f"{name}.tar",
            "samples": len(self.rows["key"]),
            "captions": sum(self.rows["captions"]),  # type: ignore[arg-type]
            "bytes": self.bytes,
            "sha256": self._sha256.hexdigest(),
            "index_sha256": index_sha256,
        }


@contextmanager
def writing_shard(root: Path, name: str, table: list[dict[str, object]]) -> Iterator[ShardWriter]:
    """Write `root`/`name`.tar with its index beside it; appends its row of the shard table to `table`.

    Left by an error, nothing remains.
    """
    with replacing(root / f"{name}.tar", unique=True) as stream:
        writer = ShardWriter(stream)
        yield writer
        writer.end()
    table.append(writer.row(name, write_index(root, name, writer.rows)))
