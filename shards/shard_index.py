"""The samples of a shard: which there are and where they lie in the tar.

    DIR/NAME.index.arrow     one row a sample, see `INDEX_SCHEMA`; an Arrow IPC file, so it is mapped, not read

Arrow alone is imported here, not what reads manifests: each worker of a conversion imports it when it starts.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.ipc

from shards.atomic import replacing

INDEX_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("image_id", pa.int64()),
        ("captions", pa.int32()),
        ("offset", pa.int64()),  # where the sample's members begin in the tar,
        ("size", pa.int64()),  # and how many bytes they span, headers included: one read fetches a sample
        ("crc32", pa.uint32()),  # of those bytes
        ("content", pa.uint64()),  # `content_hash` of the encoded image; of the regions where there is none
        ("width", pa.int32()),  # pixels; 0 without an image
        ("height", pa.int32()),
    ]
)
Rows = dict[str, list[object]]
"""A table as a list a column."""


def content_hash(data: bytes) -> int:
    """The first 64 bits of the SHA-256: equal for copies of one picture, else by chance one in 2**64."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big")


def image_id_of(content: int) -> int:
    """The image id of a sample whose source has none: copies of one picture share it."""
    return content >> 1  # fits int64


@dataclass(frozen=True)
class ShardIndex:
    """The samples of one shard, in the tar's order; arrays of one length, mapped from the file."""

    keys: pa.StringArray
    image_ids: npt.NDArray[np.int64]
    captions: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    crc32: npt.NDArray[np.uint32]
    content: npt.NDArray[np.uint64]
    widths: npt.NDArray[np.int32]
    heights: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.offsets)

    def key(self, row: int) -> str:
        return str(self.keys[row])


def index_name(name: str) -> str:
    return f"{name}.index.arrow"


def write_index(root: Path, name: str, rows: Rows) -> str:
    """Write the sample table of shard `name`; `rows` holds a list a column of `INDEX_SCHEMA`.

    Returns the file's SHA-256.
    """
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, INDEX_SCHEMA) as writer:
        writer.write_table(pa.table(rows, schema=INDEX_SCHEMA).combine_chunks())
    data = sink.getvalue()
    with replacing(root / index_name(name)) as stream:
        stream.write(data)
    return hashlib.sha256(data).hexdigest()


def read_table(path: Path) -> pa.Table:
    """A sample table as it stands in the file. Raises `OSError`, or Arrow's own error where it is damaged."""
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    if table.schema != INDEX_SCHEMA:
        raise pa.ArrowInvalid("another layout")
    return table


def as_index(table: pa.Table) -> ShardIndex:
    """The columns of a sample table as arrays."""
    # one batch, as `write_index` makes it, is used where it lies; a column of a table would be copied
    batches = table.combine_chunks().to_batches()
    batch = batches[0] if batches else pa.RecordBatch.from_pylist([], schema=INDEX_SCHEMA)
    numbers = [batch[name].to_numpy() for name in INDEX_SCHEMA.names[1:]]
    return ShardIndex(batch["key"], *numbers)
