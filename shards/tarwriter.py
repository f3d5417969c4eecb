"""One shard: samples -> a WebDataset tar and its rows of the manifest's tables."""

import hashlib
import io
import json
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from shards.atomic import replacing
from shards.manifest import INDEX_SCHEMA, Rows, content_hash, image_id_of, write_index
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
    image_bytes = [] if sample.image is None else [(sample.extension, sample.image)]
    regions_bytes = [] if sample.regions is None else [("regions.npy", _npy(sample.regions))]
    parts = image_bytes + regions_bytes
    content = content_hash(parts[0][1])
    record = sample.record
    image_id = record.image_id if record.image_id is not None else image_id_of(content)
    label: dict[str, object] = {"image_id": image_id, "captions": list(record.captions)}
    if record.caption_ids:
        label["caption_ids"] = list(record.caption_ids)
    parts.append(("json", json.dumps(label, ensure_ascii=False).encode()))
    data = b"".join(_member(f"{record.key}.{extension}", content) for extension, content in parts)
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


class ShardWriter:
    """Writes one tar at `root`/`name`.tar and, when it is finished, its index beside it.

    Use as a context manager: left by an error, nothing of the tar remains.
    """

    def __init__(self, root: Path, name: str) -> None:
        self.root, self.name = root, name
        self.rows: Rows = {column: [] for column in INDEX_SCHEMA.names}
        self.bytes = 0
        self._sha256 = hashlib.sha256()
        self._context = replacing(root / f"{name}.tar")

    def __enter__(self) -> "ShardWriter":
        self._stream: IO[bytes] = self._context.__enter__()
        return self

    def has_room(self, sample: Encoded, max_bytes: int | None) -> bool:
        """Whether the shard would stay within `max_bytes`; an empty one takes any sample."""
        return max_bytes is None or not self.bytes or self.bytes + len(sample.data) <= max_bytes

    def add(self, sample: Encoded) -> None:
        for column, value in {**sample.row, "offset": self.bytes}.items():
            self.rows[column].append(value)
        self._write(sample.data)

    def _write(self, data: bytes) -> None:
        self._stream.write(data)
        self._sha256.update(data)
        self.bytes += len(data)

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            end = 2 * tarfile.BLOCKSIZE
            self._write(bytes(end + -(self.bytes + end) % tarfile.RECORDSIZE))
        self._context.__exit__(*error)  # type: ignore[arg-type]

    def finish(self) -> dict[str, object]:
        """Write the index of the closed tar; returns its row of the shard table."""
        index_sha256 = write_index(self.root, self.name, self.rows)
        return {
            "name": self.name,
            "path": f"{self.name}.tar",
            "samples": len(self.rows["key"]),
            "captions": sum(self.rows["captions"]),  # type: ignore[arg-type]
            "bytes": self.bytes,
            "sha256": self._sha256.hexdigest(),
            "index_sha256": index_sha256,
        }
