"""A lock on a folder that several processes, on several machines, may work in."""

import errno
import fcntl
import logging
import os
import time
from functools import cache
from multiprocessing import reduction
from pathlib import Path
from typing import Any

_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}
_PAUSE = 0.05


class FileLock:
    """An advisory lock on the file at `path`, which is created.

    The system keeps it until the last process that holds it has ended. Worker processes to which it is passed
    when they start hold it too, so nobody else gets it while a worker of a killed process still writes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.works = True
        """False once it turned out that the file system has no locks."""
        self._descriptor = os.open(
            path, os.O_RDWR | os.O_CREAT, 0o666
        )  # NFS: shared needs reading, exclusive writing

    def acquire(self, *, shared: bool = False, patience: float = 0) -> bool:
        """Take the lock, or make a held one shared or exclusive; False when others keep it for `patience` seconds.

        Where the file system has no locks, a warning is logged and the lock counts as taken.
        """
        deadline = time.monotonic() + patience
        while not self._try(fcntl.LOCK_SH if shared else fcntl.LOCK_EX):
            if time.monotonic() >= deadline:
                return False
            time.sleep(_PAUSE)
        return True

    def _try(self, kind: int) -> bool:
        try:
            fcntl.flock(self._descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            self.works = False
            _warn(self.path.parent)
        return True

    def is_current(self) -> bool:
        """Whether the locked file still stands at `path`: its last holder may have deleted it."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), self.path.stat())
        except FileNotFoundError:
            return False

    def close(self) -> None:
        os.close(self._descriptor)

    def __reduce__(self) -> tuple[object, ...]:
        return _reopen, (self.path, reduction.DupFd(self._descriptor))


@cache
def _warn(folder: Path) -> None:
    logging.getLogger(__name__).warning(
        "%s: this file system has no locks; see to it yourself that no second call writes there", folder
    )


def _reopen(path: Path, duplicate: Any) -> FileLock:
    lock = FileLock.__new__(FileLock)
    lock.path, lock.works, lock._descriptor = path, True, duplicate.detach()
    return lock
