"""Small whole files, from wherever they lie, as local paths."""

import hashlib
from pathlib import Path
from threading import Event

from shards.errors import DataError
from shards.storage.cache import Cache
from shards.storage.location import is_remote, resolve


def fetch(location: str, cache: Cache | None, sha256: str | None = None) -> Path:
    """The file at `location` as a local path, fetched into the cache (None: the default one) where it is remote.

    With a known `sha256` the file is checked on arrival and fetched once; without, it is fetched anew in each
    call. Raises `DataError` when it cannot be had.
    """
    location = resolve(location)
    if not is_remote(location):
        return Path(location)
    return _fetch(location, cache or Cache(), sha256)


def _fetch(location: str, cache: Cache, sha256: str | None) -> Path:
    from shards.storage.store import Store
    from shards.storage.transfer import DamagedError, transfer

    store = Store(cache.directory, cache.max_bytes)
    key = hashlib.sha256(f"{location}\n{sha256 or ''}".encode()).hexdigest()[:40]

    def check(data: bytes) -> str | None:
        if sha256 is None or hashlib.sha256(data).hexdigest() == sha256:
            return None
        return "not the file that the manifest describes (another SHA-256)"

    def is_kept() -> bool:
        return sha256 is not None and store.use(key) and _sha256(store.path(key)) == sha256

    if not is_kept():
        never = Event()
        with store.claim(key, never):
            if not is_kept():
                try:
                    data = transfer(location, cache, None, check)
                except DamagedError as error:  # its bytes are of no use here, nor to whom a worker sends the error
                    raise DataError(str(error)) from None
                store.put(key, data)
    return store.path(key)


def _sha256(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:  # evicted by another process since
        return None
