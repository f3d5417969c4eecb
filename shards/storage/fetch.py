"""Small whole files, from wherever they lie, as local paths."""

from pathlib import Path

from shards.errors import DataError
from shards.storage.cache import Cache
from shards.storage.location import is_remote


def fetch(location: str, cache: Cache | None) -> Path:
    """The file at `location` as a local path, fetched into the cache where it is remote."""
    if is_remote(location):
        raise DataError(f"{location}: remote data cannot be read yet")
    return Path(location)
