"""Positioned reads from local tars, kept open."""

import os
import resource
from collections import OrderedDict
from typing import TYPE_CHECKING

from shards.errors import DataError

if TYPE_CHECKING:
    from shards.manifest import ShardIndex


def _most_open_files() -> int:
    # of what the process may open, most is left to others
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1024 if soft == resource.RLIM_INFINITY else max(16, min(1024, soft // 4))


class LocalReader:
    """Reads samples of tars on a local disk. A copy sent to another process opens them anew."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, int] = OrderedDict()
        self._most = _most_open_files()

    def __getstate__(self) -> dict[str, object]:
        return {"_open": OrderedDict(), "_most": self._most}

    def _descriptor(self, location: str) -> int:
        if location in self._open:
            self._open.move_to_end(location)
            return self._open[location]
        try:
            descriptor = os.open(location, os.O_RDONLY)
        except OSError as error:
            raise DataError(f"{location}: the shard cannot be opened ({error.strerror})") from None
        self._open[location] = descriptor
        if len(self._open) > self._most:
            os.close(self._open.popitem(last=False)[1])
        return descriptor

    def read(self, location: str, index: "ShardIndex", row: int) -> bytes:
        """The bytes of the sample at `row`; fewer of them where the tar ends early.

        Raises `DataError` when the file cannot be opened or read.
        """
        descriptor = self._descriptor(location)
        try:
            return os.pread(descriptor, int(index.sizes[row]), int(index.offsets[row]))
        except OSError as error:
            raise DataError(f"{location}: cannot be read ({error.strerror})") from None

    def prefetch(self, location: str, index: "ShardIndex", first: int, last: int) -> None:
        """Tell the system that rows `first .. last - 1` will be read: it reads them ahead in sequence."""
        start, end = int(index.offsets[first]), int(index.offsets[last - 1] + index.sizes[last - 1])
        os.posix_fadvise(self._descriptor(location), start, end - start, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()
