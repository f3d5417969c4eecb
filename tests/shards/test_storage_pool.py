import sys
import threading
import time
from collections.abc import Iterator

import pytest

from shards.storage.pool import DaemonPool


def test_work_is_done_in_the_order_of_submission() -> None:
    pool, done = DaemonPool[int](1, "itm-test"), []
    futures = [pool.submit(lambda number=number: done.append(number) or number) for number in range(5)]
    assert [future.result(5) for future in futures] == done == [0, 1, 2, 3, 4]
    pool.close(5)


def test_closing_cancels_what_has_not_begun() -> None:
    pool, go = DaemonPool[bool](1, "itm-test"), threading.Event()
    running, waiting = pool.submit(lambda: go.wait(5)), pool.submit(lambda: True)
    while not running.running():
        time.sleep(0.001)
    pool.close(0)
    assert waiting.cancelled()
    go.set()
    assert running.result(5)


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads are switched at every chance."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_closing_does_not_wait_for_a_task_that_a_thread_has_just_taken(hasty: None) -> None:
    def close_many() -> None:
        for _ in range(600):  # enough: what asked first whether there was a task hung within some hundred
            pool = DaemonPool[None](4, "itm-test")
            for _ in range(30):
                pool.submit(lambda: None)
            pool.close(1)

    closing = threading.Thread(target=close_many, daemon=True)
    closing.start()
    closing.join(30)
    assert not closing.is_alive()
