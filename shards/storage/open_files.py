"""The files that this process keeps open for reading, whoever reads them: what it may open, it may open once."""

import os
import resource
from collections import OrderedDict
from threading import RLock

MOST = 1 << 15
"""Files kept open at most. The order of an epoch draws on some 2,000 shards of each data set of a mixture."""


def raise_limit() -> int:
    """Raise what this process may open as far as it needs and is allowed. Returns how many files to keep open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MOST
    wanted = 2 * MOST if hard == resource.RLIM_INFINITY else min(2 * MOST, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return max(soft, wanted) // 2  # the rest is left to others


class OpenFiles:
    """Keeps open what was read last, at most `most` files (by default what `raise_limit` gives).

    Several readers share it, each an `owner` that sees only files which it has opened itself.
    """

    def __init__(self, most: int | None = None) -> None:
        self._most = most
        self._open: OrderedDict[tuple[object, str], int] = OrderedDict()
        self._lock = RLock()  # a reader that is collected closes its files whatever this thread is doing

    def read(self, owner: object, path: str, size: int, offset: int) -> bytes:
        """At most `size` bytes from `offset` on. Raises `OSError`."""
        with self._lock:  # else another thread's opening could close the file in between
            return os.pread(self._descriptor(owner, path), size, offset)

    def read_ahead(self, owner: object, path: str, size: int, offset: int) -> None:
        """Tell the system that these bytes will be read. Raises `OSError`."""
        with self._lock:
            os.posix_fadvise(self._descriptor(owner, path), offset, size, os.POSIX_FADV_WILLNEED)

    def close(self, owner: object) -> None:
        """Close what `owner` has opened."""
        with self._lock:
            for key in [key for key in self._open if key[0] is owner]:
                os.close(self._open.pop(key))

    def _descriptor(self, owner: object, path: str) -> int:
        key = (owner, path)
        if key in self._open:
            self._open.move_to_end(key)
            return self._open[key]
        if self._most is None:
            self._most = raise_limit()
        while len(self._open) >= self._most:
            os.close(self._open.popitem(last=False)[1])
        descriptor = self._open[key] = os.open(path, os.O_RDONLY)
        return descriptor


SHARED = OpenFiles()
"""This process's: what may be opened is limited a process, so it is shared out in one place."""
