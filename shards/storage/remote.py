"""Samples of tars behind URLs, by way of blocks that are kept in the cache."""

import logging
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from threading import Event, Lock
from typing import TYPE_CHECKING

from shards.errors import DataError, SampleError
from shards.order import LIVE_RUNS
from shards.storage.blocks import Block, BlockTable
from shards.storage.cache import Cache
from shards.storage.pool import DaemonPool
from shards.storage.store import Store
from shards.storage.transfer import DamagedError, transfer

if TYPE_CHECKING:
    from shards.shard_index import ShardIndex

TABLES = 2 * LIVE_RUNS
"""Block tables kept a reader, as many as there are indexes."""
AHEAD = 4
"""At most one part in `AHEAD` of the cache is on its way at once: more would push out what is yet to be read."""
WASTE = 3
"""Bytes transferred for each that is read, above which the cache is called too small."""
_PATIENCE = 5.0  # seconds
MEND = "index it again with `itm shards index`, or put back the tar that was converted"
_DAMAGED = "arrives damaged, with another CRC-32 than in the index"

_log = logging.getLogger(__name__)


class RemoteReader:
    """Reads samples of tars behind URLs. A copy sent to another process starts its own transfers."""

    def __init__(self, cache: Cache | None = None) -> None:
        self.cache = cache or Cache()
        self.bytes_transferred = 0
        """From the network, by this reader."""
        self.bytes_read = 0
        self._store = Store(self.cache.directory, self.cache.max_bytes)
        self._tables: OrderedDict[str, BlockTable] = OrderedDict()
        self._lock = Lock()
        self._under_way: dict[str, Future[None]] = {}
        self._bytes_under_way = 0
        self._pool: DaemonPool[None] | None = None
        self._stopped = Event()
        self._has_warned = False
        self._damaged: set[tuple[str, int]] = set()
        """Block and row of samples that arrived damaged in all attempts."""

    def __reduce__(self) -> tuple[type["RemoteReader"], tuple[Cache]]:
        return RemoteReader, (self.cache,)

    def read(self, location: str, index: "ShardIndex", row: int) -> bytes:
        """The bytes of the sample at `row`, from the cache, or with its whole block from the network.

        Raises `SampleError` when they arrive damaged in all attempts, `DataError` when they cannot be had, or
        when all samples of a block arrive damaged: then the tar is another one.
        """
        block = self._table(location, index).holding(row)
        self.bytes_read += int(index.sizes[row])
        while True:
            if (data := self._kept(block, index, row)) is not None:
                return data
            if self._wait(block):
                continue
            if (fetched := self._bring(block, index, self._stopped)) is not None:
                offset = int(index.offsets[row]) - block.start
                data = fetched[offset : offset + int(index.sizes[row])]
                self._refuse_damaged(block, index, row)
                return data

    def prefetch(self, location: str, index: "ShardIndex", first: int, last: int) -> bool:
        """Start to bring rows `first .. last - 1` into the cache; a hint, which may be dropped.

        Returns whether all of it is taken. Errors come up in `read`, should the rows be read.
        """
        taken = True
        for block in self._table(location, index).between(first, last):
            if self._store.use(block.key):
                continue
            with self._lock:
                known = self._under_way.get(block.key)
                failed = known is not None and known.done()
                most = self.cache.max_bytes // AHEAD
                too_many = self._bytes_under_way > 0 and self._bytes_under_way + len(block) > most
                if known is not None and not failed:
                    continue
                if too_many:
                    taken = False
                    continue
                if self._pool is None:
                    self._pool = DaemonPool(self.cache.threads, "itm-prefetch")
                self._bytes_under_way += len(block)
                transferred = self._pool.submit(partial(self._bring_ahead, block, index, self._stopped))
                self._under_way[block.key] = transferred
            transferred.add_done_callback(partial(self._finished, block))
        return taken

    def close(self) -> None:
        """Break off what is on its way. The reader may be used again."""
        self._stopped.set()
        if self._pool is not None:
            self._pool.close(_PATIENCE)
        self._pool, self._stopped = None, Event()
        self._under_way.clear()
        self._tables.clear()

    def _table(self, location: str, index: "ShardIndex") -> BlockTable:
        table = self._tables.get(location)
        if table is None or table.index is not index:
            table = self._tables[location] = BlockTable(location, index)
            if len(self._tables) > TABLES:
                self._tables.popitem(last=False)
        self._tables.move_to_end(location)
        return table

    def _kept(self, block: Block, index: "ShardIndex", row: int) -> bytes | None:
        offset, size = int(index.offsets[row]) - block.start, int(index.sizes[row])
        data = self._store.read(block.key, offset, size)
        if data is not None and zlib.crc32(data) != index.crc32[row]:
            self._refuse_damaged(block, index, row)
            self._store.remove(block.key)  # a disk that was full or cut off; checked here, not synced when written
            return None
        return data

    def _refuse_damaged(self, block: Block, index: "ShardIndex", row: int) -> None:
        if (block.key, row) in self._damaged:
            raise SampleError(f"{block.location}: sample {index.key(row)}: {_DAMAGED}")

    def _wait(self, block: Block) -> bool:
        """Whether a prefetch has just brought the block. Its error is raised here."""
        with self._lock:
            transferred = self._under_way.pop(block.key, None)
        if transferred is None or transferred.cancel():  # one that still queues is overtaken
            return False
        transferred.result()
        return True

    def _finished(self, block: Block, transferred: "Future[None]") -> None:
        with self._lock:
            self._bytes_under_way -= len(block)
            failed = not transferred.cancelled() and transferred.exception() is not None
            if not failed and self._under_way.get(block.key) is transferred:
                del self._under_way[block.key]

    def _bring_ahead(self, block: Block, index: "ShardIndex", stopped: Event) -> None:
        self._bring(block, index, stopped)  # what it returns is not kept in memory

    def _bring(self, block: Block, index: "ShardIndex", stopped: Event) -> bytes | None:
        """Fetch a block into the cache; None when another process just did."""
        check = partial(_damage, block, index)
        with self._store.claim(block.key, stopped):
            if self._store.use(block.key):
                return None
            try:
                data = transfer(block.location, self.cache, (block.start, block.end), check, stopped)
            except DamagedError as error:
                data = error.data
                damaged = list(_damaged_rows(block, index, data))
                if len(damaged) == block.last - block.first > 1:
                    raise DataError(
                        f"{block.location}: not the tar that its index describes (rows {block.first} to "
                        f"{block.last - 1} all have another CRC-32); {MEND}"
                    ) from None
                self._damaged.update((block.key, row) for row in damaged)  # the other samples are whole
            self._store.put(block.key, data)
        with self._lock:
            self.bytes_transferred += len(data)
        self._warn_of_waste()
        return data

    def _warn_of_waste(self) -> None:
        if self._has_warned or self.bytes_transferred < WASTE * self.bytes_read + self.cache.max_bytes:
            return
        self._has_warned = True
        _log.warning(
            "cache %s: %.1f GB transferred to read %.1f GB: %.1f GB are too little for it; give it more",
            self.cache.directory,
            self.bytes_transferred / 1e9,
            self.bytes_read / 1e9,
            self.cache.max_bytes / 1e9,
        )


def _damage(block: Block, index: "ShardIndex", data: bytes) -> str | None:
    for row in _damaged_rows(block, index, data):
        return f"sample {index.key(row)} {_DAMAGED}"
    return None


def _damaged_rows(block: Block, index: "ShardIndex", data: bytes) -> Iterator[int]:
    view = memoryview(data)
    for row in range(block.first, block.last):
        offset = int(index.offsets[row]) - block.start
        if zlib.crc32(view[offset : offset + int(index.sizes[row])]) != index.crc32[row]:
            yield row
