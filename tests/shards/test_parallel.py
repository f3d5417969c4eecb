import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, islice
from multiprocessing import active_children, parent_process
from pathlib import Path

import psutil
import pytest

from shards.errors import DataError
from shards.lock import FileLock
from shards.parallel import CHUNK, ordered_map


def square(number: int) -> int:
    return number * number


def square_but_later_for_small_numbers(number: int) -> int:
    time.sleep(0.2 if number == 0 else 0)
    return number * number


def process_of(_item: int) -> int:
    return os.getpid()


def fail_at_40(number: int) -> int:
    if number == 40:
        raise ValueError("forty")
    return number


def exit_in_a_worker(_number: int) -> None:
    if parent_process() is not None:
        os._exit(1)
    while active_children():  # it has one, which has its share of the work by now or will have
        time.sleep(0.01)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("items", [0, 1, CHUNK, CHUNK + 1, 150])
def test_results_come_in_order(items: int, processes: int) -> None:
    results = list(ordered_map(square_but_later_for_small_numbers, range(items), processes))
    assert results == [number * number for number in range(items)]


def test_one_process_computes_in_this_one() -> None:
    assert set(ordered_map(process_of, range(3), 1)) == {os.getpid()}


def test_with_more_processes_this_one_works_too() -> None:
    seen: set[int] = set()
    for process in ordered_map(process_of, count(), 2, chunk=1):
        seen.add(process)
        if len(seen) == 2:
            break
    assert os.getpid() in seen


def test_a_single_chunk_is_not_worth_a_worker() -> None:
    results = ordered_map(process_of, range(CHUNK), 2)
    assert next(results) == os.getpid()
    assert not active_children()
    assert set(results) == {os.getpid()}


@pytest.mark.parametrize("processes", [1, 2])
def test_an_endless_iterable_is_consumed_only_a_bounded_way_ahead(processes: int) -> None:
    taken = 0

    def numbers() -> Iterator[int]:
        nonlocal taken
        for number in count():
            taken += 1
            yield number

    results = ordered_map(square, numbers(), processes)
    assert list(islice(results, 100)) == [number * number for number in range(100)]
    assert taken <= 100 + (4 * processes + 1) * CHUNK
    results.close()


@pytest.mark.parametrize(("processes", "before"), [(1, 40), (2, 40 // CHUNK * CHUNK)])
def test_an_error_of_the_function_reaches_the_caller_in_its_turn(processes: int, before: int) -> None:
    results = ordered_map(fail_at_40, range(1000), processes)
    assert list(islice(results, before)) == list(range(before))
    with pytest.raises(ValueError, match="forty"):
        next(results)


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_of_the_items_reaches_the_caller(processes: int) -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("source")

    with pytest.raises(KeyError, match="source"):
        list(ordered_map(square, items(), processes))


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_dies_is_an_error_and_no_hang() -> None:
    with pytest.raises(DataError, match="a worker process died, as the system makes it when memory runs out"):
        list(ordered_map(exit_in_a_worker, range(100), 2, chunk=1))


def sleep_long(_number: int) -> None:
    time.sleep(600)


@pytest.mark.parametrize("stop", [KeyError, DataError])
def test_an_error_does_not_wait_for_what_workers_do(stop: type[Exception]) -> None:
    def items() -> Iterator[int]:
        yield from range(2)
        time.sleep(1)  # until both work
        raise stop("stop")

    begin = time.monotonic()
    with pytest.raises(stop):
        list(ordered_map(sleep_long, items(), 2, chunk=1))
    assert time.monotonic() - begin < 60
    assert not active_children()


def test_a_caller_that_stops_early_does_not_wait_either() -> None:
    begin = time.monotonic()
    results = ordered_map(sleep_long_after_the_first, count(), 2, chunk=1)
    assert next(results) == 0
    results.close()
    assert time.monotonic() - begin < 60
    assert not active_children()


def sleep_long_after_the_first(number: int) -> int:
    time.sleep(600 if number and parent_process() is not None else 0)
    return number


PROGRAM = """
import signal, sys, time
from pathlib import Path
from shards.lock import FileLock
from shards.parallel import ordered_map

if __name__ == "__mp_main__":
    time.sleep(float(sys.argv[2]))
if __name__ == "__main__":
    lock = FileLock(Path(__file__).with_name("lock"))
    lock.acquire()
    # a test run in the background hands down that interrupts are ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for _ in ordered_map(time.sleep, [0.001] * 100_000, 3, lock=lock):
            print("under way", flush=True)
            time.sleep(float(sys.argv[1]))
    except KeyboardInterrupt:
        sys.exit(130)
"""


@contextmanager
def under_way(tmp_path: Path, pause: float, start: float = 0) -> Iterator[subprocess.Popen[str]]:
    """A program with two workers beside itself, in a process group of its own, that takes a result each `pause`.

    Its workers take `start` seconds to start.
    """
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, script, str(pause), str(start)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "under way\n"
        yield program
        if group_lives(program.pid):
            os.killpg(program.pid, signal.SIGKILL)


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("pause", [0, 60])
def test_workers_end_when_their_parent_is_killed(tmp_path: Path, pause: float) -> None:
    """Busy ones, and ones that wait for work."""
    with under_way(tmp_path, pause) as program:
        program.kill()
        program.communicate(timeout=30)  # returns only when the workers, which hold the pipe too, are gone
        deadline = time.monotonic() + 30
        while group_lives(program.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not group_lives(program.pid)


def test_a_lock_ends_with_the_last_worker(tmp_path: Path) -> None:
    with under_way(tmp_path, pause=60) as program:
        workers = [child for child in psutil.Process(program.pid).children() if "spawn_main" in child.cmdline()[-2]]
        assert len(workers) == 2
        workers[0].suspend()
        program.kill()
        program.wait()
        lock = FileLock(tmp_path / "lock")
        assert not lock.acquire(patience=1), "a worker may still write"
        workers[0].resume()
        assert lock.acquire(patience=30)
        lock.close()


@pytest.mark.parametrize("start", [0, 2])
def test_workers_stay_quiet_when_the_user_interrupts(tmp_path: Path, start: float) -> None:
    with under_way(tmp_path, pause=60, start=start) as program:
        time.sleep(1)  # the workers wait for work, or are being started
        os.killpg(program.pid, signal.SIGINT)
        _, errors = program.communicate(timeout=30)
    assert (program.returncode, errors) == (130, "")
