"""A directory of cached files within a bound, which any number of processes share.

    DIR/data/KEY      whole files; their time of change is that of their last use
    DIR/partial/*     files being written; the writer holds a lock on each, so one without is a dead writer's
    DIR/used          the sum of both in bytes or more, never less; its lock guards all accounts
    DIR/claims/NNN    empty; who fetches a key holds the lock of its number

Locks are the kernel's and end with the process that holds them. `used` errs upwards only (after a kill, or a
file removed by hand), which the next eviction mends: it counts anew.
"""

import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Event
from typing import IO

from shards.errors import DataError

CLAIMS = 1024
"""Two keys of one number merely wait for each other."""
SPARE = 20
"""An eviction frees one part in `SPARE` of the bound beyond need, so that the next is not due at once."""
_DIGITS = 20
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


class StoppedError(Exception):
    """Whoever wanted this has been closed."""


class Store:
    """Bytes by key (hexadecimal) on a local disk. Holds nothing open; may be pickled."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self.directory, self.max_bytes = directory, max_bytes

    def path(self, key: str) -> Path:
        return self.directory / "data" / key

    def use(self, key: str) -> bool:
        """Whether the key is here; counts as a use of it."""
        with self._errors():
            try:
                os.utime(self.path(key))
            except FileNotFoundError:
                return False
        return True

    def read(self, key: str, offset: int, size: int) -> bytes | None:
        """Bytes of the key, None where it is not here; counts as a use of it."""
        with self._errors():
            try:
                descriptor = os.open(self.path(key), os.O_RDONLY)
            except FileNotFoundError:
                return None
            try:
                os.utime(descriptor)
                return os.pread(descriptor, size, offset)
            finally:
                os.close(descriptor)

    def remove(self, key: str) -> None:
        self.path(key).unlink(missing_ok=True)

    @contextmanager
    def claim(self, key: str, stopped: Event) -> Iterator[None]:
        """Hold the right to fetch `key`: others, in this process and in others, wait. Raises `StoppedError`."""
        with self._errors():
            self._folders()
            stream = (self.directory / "claims" / f"{int(key[:8], 16) % CLAIMS:03x}").open("wb")
        with stream:
            pause = 0.001
            while not self._locked(stream):
                pause = min(2 * pause, 0.05)
                if stopped.wait(pause):
                    raise StoppedError
            yield

    def put(self, key: str, data: bytes) -> None:
        """Keep `data`, at the expense of what was not used for longest.

        Raises `DataError` when it is larger than the bound or the disk does not take it.
        """
        if len(data) > self.max_bytes:
            raise DataError(
                f"cache {self.directory}: {len(data):,} bytes to keep, but it is bounded to {self.max_bytes:,}; "
                "give it many times more"
            )
        with self._errors(), self._reserved(len(data)) as stream:
            stream.write(data)
            stream.flush()
            Path(stream.name).replace(self.path(key))

    def _locked(self, stream: IO[bytes]) -> bool:
        with self._errors():
            return _locked(stream)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Tell what the disk refuses in one line; every use of the directory is within it."""
        try:
            yield
        except OSError as error:
            if error.errno in _NO_LOCKS:
                fault, mend = f"this file system has no locks ({error.strerror})", "name a folder on a local disk"
            else:
                fault, mend = f"cannot be written to ({error.strerror})", "make room there, or name another folder"
            raise DataError(f"cache {self.directory}: {fault}; {mend}, by data.cache.dir or ITM_CACHE") from None

    def _folders(self) -> None:
        for name in ("data", "partial", "claims"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)

    @contextmanager
    def _reserved(self, size: int) -> Iterator[IO[bytes]]:
        """A locked file for `size` bytes, which are within the bound; removed unless renamed."""
        with ExitStack() as stack:
            with self._accounts() as accounts:
                noted = os.pread(accounts, _DIGITS, 0)
                used = int(noted) if noted else self.max_bytes  # at first nothing is known of the directory
                if used + size > self.max_bytes:
                    used = self._evict(self.max_bytes - size)
                os.pwrite(accounts, f"{used + size:0{_DIGITS}}".encode(), 0)  # in one step: a kill leaves a number
                folder = self.directory / "partial"
                stream = stack.enter_context(tempfile.NamedTemporaryFile(dir=folder, delete=False))
                stack.callback(Path(stream.name).unlink, missing_ok=True)
                fcntl.flock(stream, fcntl.LOCK_EX)
                stream.truncate(size)  # whoever counts meanwhile counts all of it
            yield stream

    @contextmanager
    def _accounts(self) -> Iterator[int]:
        self._folders()
        descriptor = os.open(self.directory / "used", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)

    def _evict(self, most: int) -> int:
        """Remove what was not used for longest until at most `most` bytes remain. Returns their sum."""
        used = 0
        # first the partial: one that is renamed meanwhile is counted twice rather than not at all
        for entry in os.scandir(self.directory / "partial"):
            used += _size_unless_orphaned(Path(entry))
        files = []
        for entry in os.scandir(self.directory / "data"):
            with suppress(FileNotFoundError):
                status = entry.stat()
                files.append((status.st_mtime_ns, status.st_size, entry.path))
        used += sum(size for _, size, _ in files)
        enough = most - self.max_bytes // SPARE
        for _, size, path in sorted(files):
            if used <= most and used - size < enough:
                break
            Path(path).unlink(missing_ok=True)
            used -= size
        return used


def _locked(stream: IO[bytes]) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _size_unless_orphaned(path: Path) -> int:
    """The size of a partial file; one whose writer is dead is removed."""
    try:
        with path.open("rb") as stream:
            if not _locked(stream):
                return os.fstat(stream.fileno()).st_size
            path.unlink(missing_ok=True)
    except FileNotFoundError:
        pass
    return 0
