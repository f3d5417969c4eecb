"""An ordered map over processes with a bounded number of items under way, so that memory stays flat.

The calling process works too, on whatever no worker has begun: a worker takes as long to start as some hundred
images take to convert, and handing items out is too little work for a process of its own.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from threading import Thread
from typing import Generic, TypeVar

from shards.errors import DataError
from shards.lock import FileLock
from shards.signals import held

Item = TypeVar("Item")
Result = TypeVar("Result")

CHUNK = 16
"""Items sent to a worker at once: enough to make the cost of a message small beside decoding an image."""

_held: list[FileLock] = []  # in a worker, until it ends


def _chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _map_chunk(function: Callable[[Item], Result], items: list[Item]) -> list[Result]:
    return [function(item) for item in items]


class _Chunk(Generic[Item, Result]):
    """Items that a worker computes, or this process, whichever comes to them first."""

    def __init__(self, pool: ProcessPoolExecutor, function: Callable[[Item], Result], items: list[Item]) -> None:
        self._function, self._items = function, items
        with held():  # a worker, started here, answers no signal: its parent stops it
            self._future: Future[list[Result]] = pool.submit(_map_chunk, function, items)

    def done(self) -> bool:
        return self._future.done()

    def compute(self) -> bool:
        """Compute it here, unless a worker has it already; returns whether it was computed."""
        if not self._future.cancel():
            return False
        # Python 3.11 tells cancelled futures, too, when a worker has died, and prints a traceback at the first
        self._future.set_exception = lambda exception: None  # type: ignore[method-assign]
        self._future = Future()
        try:
            self._future.set_result(_map_chunk(self._function, self._items))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told in its turn, as a worker's is
            self._future.set_exception(error)
        return True

    def result(self) -> list[Result]:
        return self._future.result()


def _start_worker(parent_lives: Connection, lock: FileLock | None) -> None:
    Thread(target=_wait_and_exit, args=(parent_lives,), daemon=True).start()
    if lock is not None:
        _held.append(lock)


def _wait_and_exit(parent_lives: Connection) -> None:
    parent_lives.poll(None)  # returns when the other end is closed, by hand or by the parent's death
    os._exit(1)


def end_with_parent() -> None:
    """Have this process, a multiprocessing child, end when its parent does.

    A parent that was killed cannot stop its children, and those would wait for it, or go on, for ever.
    """
    Thread(target=_join_and_exit, daemon=True).start()


def _join_and_exit() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def ordered_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    processes: int,
    chunk: int = CHUNK,
    lock: FileLock | None = None,
) -> Iterator[Result]:
    """Yield `function(item)` for every item, in order, computed by this process and `processes - 1` others.

    With one process, or one chunk of items, nothing is spawned; else `function` and the items must be picklable.
    Items are sent to a worker `chunk` at a time. At most four chunks a process are under way, so an endless
    iterable is fine. Workers hold `lock` as long as they live. They end with this process, even when it is killed,
    and at once when the caller stops early or an error is raised. Raises `DataError` when a worker dies.
    """
    if processes <= 1:
        yield from map(function, items)
        return
    chunks = _chunks(items, chunk)
    first = list(islice(chunks, 2))
    if len(first) < 2:
        yield from map(function, chain.from_iterable(first))
        return
    chunks = chain(first, chunks)
    # spawn: the caller may hold threads or a loaded torch, neither of which survives a fork unharmed
    context = get_context("spawn")
    parent_lives, ours = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(processes - 1, context, _start_worker, (parent_lives, lock))
    pending: deque[_Chunk[Item, Result]] = deque()
    try:
        while True:
            for part in islice(chunks, 4 * processes - len(pending)):
                pending.append(_Chunk(pool, function, part))
            if not pending:
                break
            if pending[0].done() or not any(one.compute() for one in pending):
                yield from pending.popleft().result()
    except BrokenProcessPool:
        raise DataError(
            "a worker process died, as the system makes it when memory runs out; repeat the call with fewer "
            "--processes"
        ) from None
    finally:
        ours.close()
        parent_lives.close()
        pool.shutdown(cancel_futures=True)
