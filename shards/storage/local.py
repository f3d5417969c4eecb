"""Positioned reads from local tars, kept open."""

from typing import TYPE_CHECKING

from shards.errors import DataError
from shards.storage.open_files import SHARED, OpenFiles

if TYPE_CHECKING:
    from shards.shard_index import ShardIndex


class LocalReader:
    """Reads samples of tars on a local disk. A copy sent to another process opens them anew."""

    def __init__(self, files: OpenFiles = SHARED) -> None:
        self._files, self._owner = files, object()

    def __reduce__(self) -> tuple[type["LocalReader"], tuple[()]]:
        return LocalReader, ()

    def read(self, location: str, index: "ShardIndex", row: int) -> bytes:
        """The bytes of the sample at `row`; fewer of them where the tar ends early.

        Raises `DataError` when the file cannot be opened or read.
        """
        try:
            return self._files.read(self._owner, location, int(index.sizes[row]), int(index.offsets[row]))
        except OSError as error:
            raise DataError(f"{location}: the shard cannot be read ({error.strerror})") from None

    def prefetch(self, location: str, index: "ShardIndex", first: int, last: int) -> bool:
        """Tell the system that rows `first .. last - 1` will be read, and return True: it takes any hint."""
        start, end = int(index.offsets[first]), int(index.offsets[last - 1] + index.sizes[last - 1])
        try:
            self._files.read_ahead(self._owner, location, end - start, start)
        except OSError as error:
            raise DataError(f"{location}: the shard cannot be read ({error.strerror})") from None
        return True

    def close(self) -> None:
        self._files.close(self._owner)
