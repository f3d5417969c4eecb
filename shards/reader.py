"""Random access to the samples of a folder of shards: one positioned read a sample."""

from collections import OrderedDict

from shards.errors import SampleError
from shards.manifest import Manifest, ShardIndex, read_index
from shards.storage.local import LocalReader
from shards.tarsample import TarSample, parse_sample

INDEXES = 1024
"""Indexes kept mapped a reader."""


class ShardReader:
    """Reads samples by shard and row. A copy sent to another process opens the shards anew."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self._indexes: OrderedDict[int, ShardIndex] = OrderedDict()
        self._bytes = LocalReader()

    def __getstate__(self) -> dict[str, object]:
        return {"manifest": self.manifest, "_indexes": OrderedDict(), "_bytes": self._bytes}

    def index(self, shard: int) -> ShardIndex:
        if shard in self._indexes:
            self._indexes.move_to_end(shard)
            return self._indexes[shard]
        index = self._indexes[shard] = read_index(self.manifest, shard)
        if len(self._indexes) > INDEXES:
            self._indexes.popitem(last=False)
        return index

    def name(self, shard: int, row: int) -> str:
        """A sample, for messages."""
        return f"{self.manifest.shard_location(shard)}: sample {self.index(shard).key(row)}"

    def read(self, shard: int, row: int) -> TarSample:
        """The sample at `row` of `shard`.

        Raises `SampleError` naming it when its bytes are damaged, `DataError` when the shard cannot be read.
        """
        index = self.index(shard)
        data = self._bytes.read(self.manifest.shard_location(shard), index, row)
        if len(data) != index.sizes[row]:
            raise SampleError(f"{self.name(shard, row)}: the shard ends early; check it against its manifest")
        return parse_sample(data, self.name(shard, row))

    def prefetch(self, shard: int, first: int, last: int) -> None:
        """Have rows `first .. last - 1` of `shard` brought up in one sequential read, without waiting for it."""
        self._bytes.prefetch(self.manifest.shard_location(shard), self.index(shard), first, last)

    def close(self) -> None:
        self._bytes.close()

    def __del__(self) -> None:
        self.close()
