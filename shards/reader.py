"""Random access to the samples of a folder of shards: one positioned read a sample."""

import os
from collections import OrderedDict

from shards.errors import DataError
from shards.manifest import Manifest, ShardIndex, read_index
from shards.tarsample import TarSample, parse_sample

OPEN_SHARDS = 128
"""Shards kept open, and indexes kept in memory, a reader."""


class ShardReader:
    """Reads samples by shard and row. A copy sent to another process opens the shards anew."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self._open: OrderedDict[int, tuple[int, ShardIndex]] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        return {"manifest": self.manifest, "_open": OrderedDict()}

    def _shard(self, shard: int) -> tuple[int, ShardIndex]:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        index = read_index(self.manifest, shard)
        descriptor = os.open(self.manifest.shard_path(shard), os.O_RDONLY)
        self._open[shard] = descriptor, index
        if len(self._open) > OPEN_SHARDS:
            _, (oldest, _) = self._open.popitem(last=False)
            os.close(oldest)
        return descriptor, index

    def index(self, shard: int) -> ShardIndex:
        return self._shard(shard)[1]

    def read(self, shard: int, row: int) -> TarSample:
        """The sample at `row` of `shard`. Raises `DataError` naming it when its bytes are damaged."""
        descriptor, index = self._shard(shard)
        size = int(index.sizes[row])
        data = os.pread(descriptor, size, int(index.offsets[row]))
        where = f"{self.manifest.shard_path(shard)}: sample {index.keys[row]}"
        if len(data) != size:
            raise DataError(f"{where}: the shard ends early; check it against its manifest")
        return parse_sample(data, where)

    def close(self) -> None:
        for descriptor, _ in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def __del__(self) -> None:
        self.close()
