"""Work in daemon threads, which, unlike those of `ThreadPoolExecutor`, never keep a process from ending."""

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread, current_thread
from typing import Generic, TypeVar

Result = TypeVar("Result")
_Task = tuple[Future[Result], Callable[[], Result]]


class DaemonPool(Generic[Result]):
    """Up to `threads` threads, started as they are needed, that work in the order of submission."""

    def __init__(self, threads: int, name: str) -> None:
        self._most, self._name = threads, name
        self._threads: list[Thread] = []
        self._tasks: SimpleQueue[_Task[Result] | None] = SimpleQueue()

    def submit(self, work: Callable[[], Result]) -> "Future[Result]":
        """Do `work` in a thread. Work that has not begun can be cancelled."""
        future: Future[Result] = Future()
        self._tasks.put((future, work))
        if len(self._threads) < self._most:
            thread = Thread(target=_serve, args=(self._tasks,), daemon=True, name=self._name)
            self._threads.append(thread)
            thread.start()
        return future

    def close(self, patience: float) -> None:
        """Cancel what has not begun and wait at most `patience` seconds a thread for what has."""
        with suppress(Empty):
            while True:  # without a look first whether there is one: a thread may take it in between
                task = self._tasks.get_nowait()
                if task is not None:
                    task[0].cancel()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            if thread is not current_thread():
                thread.join(patience)
        self._threads.clear()


def _serve(tasks: "SimpleQueue[_Task[Result] | None]") -> None:
    while (task := tasks.get()) is not None:
        fulfil(*task)
        del task  # it may hold the last reference to what it worked for


def fulfil(future: "Future[Result]", work: Callable[[], Result]) -> None:
    """Give `future` what `work` returns or raises, unless it was cancelled."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(work())
    except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
        future.set_exception(error)
