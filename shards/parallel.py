"""An ordered map over processes with a bounded number of items under way, so that memory stays flat."""

import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

CHUNK = 16
"""Items sent to a worker at once: enough to make the cost of a message small beside decoding an image."""


def _chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _map_chunk(function: Callable[[Item], Result], items: list[Item]) -> list[Result]:
    return [function(item) for item in items]


def _start_worker() -> None:
    # Ctrl-C reaches the whole process group; the parent alone answers it, and stops its workers itself
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def end_with_parent() -> None:
    """Have this process, a multiprocessing child, end when its parent does.

    A parent that was killed cannot stop its children, and those would wait for it, or go on, for ever.
    """
    Thread(target=_wait_and_exit, daemon=True).start()


def _wait_and_exit() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], processes: int, chunk: int = CHUNK
) -> Iterator[Result]:
    """Yield `function(item)` for every item, in order, computed by `processes` worker processes.

    With one process nothing is spawned; with more, `function` and the items must be picklable. Items are sent
    to a worker `chunk` at a time. At most four chunks a worker are under way, so an endless iterable is fine.
    """
    if processes <= 1:
        yield from map(function, items)
        return
    chunks = _chunks(items, chunk)
    # spawn: the caller may hold threads or a loaded torch, neither of which survives a fork unharmed
    with ProcessPoolExecutor(processes, get_context("spawn"), _start_worker) as pool:
        pending: deque[Future[list[Result]]] = deque()
        try:
            while True:
                for part in islice(chunks, 4 * processes - len(pending)):
                    pending.append(pool.submit(_map_chunk, function, part))
                if not pending:
                    return
                yield from pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
