"""What lies behind URLs, kept on a local disk up to a bound."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from shards.errors import DataError


def default_directory() -> Path:
    """`$ITM_CACHE`, or `~/.cache/itm`."""
    return Path(os.environ.get("ITM_CACHE") or "~/.cache/itm").expanduser()


@dataclass(frozen=True)
class Cache:
    """Where remote files are kept here, and how they are fetched.

    All processes of a machine may share the directory; it belongs on a local disk.
    """

    directory: Path = field(default_factory=default_directory)
    max_bytes: int = 64 * 1024**3
    """Of everything in the directory; what was not used for longest goes first."""
    timeout: float = 60.0
    """Seconds without an answer after which an attempt has failed."""
    attempts: int = 5
    """Of each transfer, with growing pauses between them."""
    first_pause: float = 0.5
    """Seconds, give or take a half, before the second attempt; doubled before each further one."""
    threads: int = 4
    """Transfers that one process prefetches at once."""

    def __post_init__(self) -> None:
        for name in ("max_bytes", "timeout", "attempts", "threads"):
            if getattr(self, name) <= 0:
                raise DataError(f"cache {self.directory}: {name} is {getattr(self, name)}, but must be positive")
