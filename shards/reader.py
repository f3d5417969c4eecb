"""Random access to the samples of a folder of shards, wherever their tars lie: one positioned read a sample."""

from collections import OrderedDict
from collections.abc import Iterable
from functools import partial

from shards.errors import SampleError
from shards.manifest import Manifest, read_index
from shards.order import LIVE_RUNS
from shards.shard_index import ShardIndex
from shards.storage.local import LocalReader
from shards.storage.location import is_remote
from shards.storage.pool import DaemonPool
from shards.storage.remote import RemoteReader
from shards.tarsample import TarSample, parse_sample

INDEXES = 2 * LIVE_RUNS
"""Indexes kept mapped a reader: more than an epoch draws on at a time, where shards hold a run or more each."""

INDEX_THREADS = 16
"""Indexes fetched at once: they are small, so what they cost is waiting."""
_PATIENCE = 0.1  # seconds


class ShardReader:
    """Reads samples by shard and row. A copy sent to another process opens the shards anew."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self._indexes: OrderedDict[int, ShardIndex] = OrderedDict()
        self._locations: dict[int, str] = {}
        self._local = LocalReader()
        self._remote = RemoteReader(manifest.cache)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_indexes": OrderedDict()}

    def _bytes(self, location: str) -> LocalReader | RemoteReader:
        return self._remote if is_remote(location) else self._local

    def _location(self, shard: int) -> str:
        # asked for with every sample, and not cheap to join
        if shard not in self._locations:
            self._locations[shard] = self.manifest.shard_location(shard)
        return self._locations[shard]

    def index(self, shard: int) -> ShardIndex:
        if shard not in self._indexes:
            return self._keep(shard, read_index(self.manifest, shard))
        self._indexes.move_to_end(shard)
        return self._indexes[shard]

    def _keep(self, shard: int, index: ShardIndex) -> ShardIndex:
        self._indexes[shard] = index
        if len(self._indexes) > INDEXES:
            self._indexes.popitem(last=False)
        return index

    def bring_indexes(self, shards: Iterable[int]) -> None:
        """Have the indexes of `shards` at hand; those behind URLs are fetched side by side.

        Raises `DataError` when one cannot be had.
        """
        missing = [shard for shard in dict.fromkeys(shards) if shard not in self._indexes]
        if len(missing) < 2 or not is_remote(self.manifest.location):
            return  # `index` reads it
        pool = DaemonPool[ShardIndex](min(INDEX_THREADS, len(missing)), "itm-indexes")
        try:
            fetched = [pool.submit(partial(read_index, self.manifest, shard)) for shard in missing]
            for shard, index in zip(missing, fetched, strict=True):
                self._keep(shard, index.result())
        finally:
            pool.close(_PATIENCE)

    def name(self, shard: int, row: int) -> str:
        """A sample, for messages."""
        return f"{self._location(shard)}: sample {self.index(shard).key(row)}"

    def read(self, shard: int, row: int) -> TarSample:
        """The sample at `row` of `shard`.

        Raises `SampleError` naming it when its bytes are damaged, `DataError` when the shard cannot be read.
        """
        index = self.index(shard)
        location = self._location(shard)
        data = self._bytes(location).read(location, index, row)
        if len(data) != index.sizes[row]:
            raise SampleError(f"{self.name(shard, row)}: the shard ends early; check it against its manifest")
        try:
            return parse_sample(data)
        except SampleError as error:
            raise SampleError(f"{self.name(shard, row)}: {error}") from None

    def prefetch(self, shard: int, first: int, last: int) -> bool:
        """Have rows `first .. last - 1` of `shard`, at least one, brought up in one sweep, without waiting.

        Returns whether the hint is taken as a whole; part of it is dropped where too much is on its way already.
        """
        location = self._location(shard)
        return self._bytes(location).prefetch(location, self.index(shard), first, last)

    def close(self) -> None:
        self._local.close()
        self._remote.close()

    def __del__(self) -> None:
        self.close()
