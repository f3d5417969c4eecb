"""One transfer from behind a URL: attempts with growing pauses, timeouts, and a check of what arrives."""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from shards.errors import DataError
from shards.storage.cache import Cache
from shards.storage.faults import describe, is_permanent, transfer_errors
from shards.storage.pool import fulfil
from shards.storage.store import StoppedError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

Check = Callable[[bytes], str | None]
"""What is wrong with bytes that arrived, None where nothing is."""


class DamagedError(DataError):
    """All bytes arrived in the last attempt, but did not pass the check in any."""

    def __init__(self, message: str, data: bytes) -> None:
        super().__init__(message)
        self.data = data


LONGEST_PAUSE = 30.0
WHOLE = 10
"""An attempt may take this many times the timeout as long as bytes keep coming."""
_POLL = 0.2  # seconds between looks at whether the transfer is still wanted

_log = logging.getLogger(__name__)
_jitter = random.Random()  # not the global one, which a run may have seeded


def transfer(
    location: str, cache: Cache, span: tuple[int, int] | None, check: Check, stopped: Event | None = None
) -> bytes:
    """The bytes `span[0] .. span[1] - 1` of the file at a URL, all of them without a span, once they pass `check`.

    Raises `DataError`: at once where another attempt would not help, else after all attempts, then as
    `DamagedError` where the last one failed by its check; `StoppedError` when `stopped` is set meanwhile.
    """
    stopped = stopped or Event()
    pause = cache.first_pause
    for attempt in range(cache.attempts):
        if attempt:
            if stopped.wait(pause * _jitter.uniform(0.5, 1.5)):
                raise StoppedError
            pause = min(2 * pause, LONGEST_PAUSE)
        damaged: bytes | None = None
        try:
            data = _attempt(location, span, cache.timeout, stopped)
        except transfer_errors() as error:
            fault: str | None = describe(error, location)
            if is_permanent(error):
                raise DataError(f"{location}: {fault}") from None
        else:
            if span is not None:
                data = _cut(data, *span)
            fault = _ends_early(data, span)
            if fault is None:
                fault = check(data)
                if fault is None:
                    return data
                damaged = data
        if attempt + 1 < cache.attempts:
            _log.warning("%s: %s (attempt %d of %d)", location, fault, attempt + 1, cache.attempts)
    message = f"{location}: {fault} ({cache.attempts} attempts)"
    raise DataError(message) if damaged is None else DamagedError(message, damaged)


def _cut(data: bytes, start: int, end: int) -> bytes:
    # a server that ignores the range sends the whole file
    return data[start:end] if len(data) > end - start else data


def _ends_early(data: bytes, span: tuple[int, int] | None) -> str | None:
    if span is None or len(data) == span[1] - span[0]:
        return None
    return f"{len(data):,} of {span[1] - span[0]:,} bytes arrived"


def _attempt(location: str, span: tuple[int, int] | None, timeout: float, stopped: Event) -> bytes:
    filesystem, path = _open(location, timeout)
    start, end = span or (0, None)  # without a start, s3 asks for the size first
    transferred: Future[bytes]
    if filesystem.async_impl:
        request = filesystem._cat_file(path, start=start, end=end)
        transferred = asyncio.run_coroutine_threadsafe(request, filesystem.loop)
        deadline = time.monotonic() + WHOLE * timeout
    else:  # such a filesystem may know no timeout of its own; a thread that hangs in it is left behind
        transferred = Future()
        work = partial(filesystem.cat_file, path, start=start, end=end)
        Thread(target=fulfil, args=(transferred, work), daemon=True, name="itm-transfer").start()
        deadline = time.monotonic() + timeout
    try:
        while not wait([transferred], _POLL).done:
            if stopped.is_set():
                raise StoppedError
            if time.monotonic() > deadline:
                raise TimeoutError
        return transferred.result()
    finally:
        transferred.cancel()


def _open(location: str, timeout: float) -> tuple["AbstractFileSystem", str]:
    import fsspec.core

    protocol = location.partition("://")[0].lower()
    options: dict[str, Any] = {}
    if protocol in ("http", "https"):
        options = _http_options(timeout)
    elif protocol in ("s3", "s3a"):
        options = _s3_options(timeout)
    filesystem, path = fsspec.core.url_to_fs(location, **options)
    if hasattr(filesystem, "retries"):
        filesystem.retries = 1  # the attempts are ours
    return filesystem, path


def _http_options(timeout: float) -> dict[str, Any]:
    from aiohttp import ClientTimeout

    given = _configured("http", "https")
    limits = ClientTimeout(total=None, sock_connect=timeout, sock_read=timeout)
    return {
        "client_kwargs": {"timeout": limits, "trust_env": True, **given.get("client_kwargs", {})},
        # a range of a compressed answer would be other bytes
        "headers": {"Accept-Encoding": "identity", **given.get("headers", {})},
    }


def _s3_options(timeout: float) -> dict[str, Any]:
    limits = {"connect_timeout": timeout, "read_timeout": timeout, "retries": {"total_max_attempts": 1}}
    return {"config_kwargs": {**limits, **_configured("s3", "s3a").get("config_kwargs", {})}}


def _configured(*protocols: str) -> dict[str, Any]:
    """What the user has set in fsspec's own configuration, by file or by environment."""
    from fsspec.config import conf

    return {name: value for protocol in protocols for name, value in conf.get(protocol, {}).items()}
