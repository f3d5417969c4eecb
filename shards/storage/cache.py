"""What lies behind URLs, kept on a local disk up to a bound."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cache:
    """Where remote files are kept here, and how they are fetched."""

    directory: Path
    max_bytes: int = 64 * 1024**3
    """Of everything in the directory; what was not used for longest goes first."""
    timeout: float = 60.0
    """Seconds without an answer after which an attempt has failed."""
    attempts: int = 5
    """Of each transfer, with growing pauses between them."""


def default_directory() -> Path:
    """`$ITM_CACHE`, else `~/.cache/itm`."""
    return Path(os.environ.get("ITM_CACHE") or Path.home() / ".cache" / "itm")
