"""What a process was told to do, from signals that it really gets."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from shards.signals import FOR_THE_PARENT, held
from trainer.preemption import StopRequest


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in FOR_THE_PARENT}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_a_request_to_save_and_any_further_one_is_the_same(number: signal.Signals) -> None:
    stop = StopRequest()
    stop.listen()
    assert stop.reason is None
    for _ in range(3):
        signal.raise_signal(number)
    signal.raise_signal(signal.SIGTERM)
    assert stop.reason == number.name
    assert stop.exit_code == 85


def test_the_second_interrupt_stops_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    stop = StopRequest()
    stop.hold_interrupts()
    signal.raise_signal(signal.SIGINT)
    assert "press again to stop at once" in capfd.readouterr().err
    assert stop.reason == "SIGINT"
    assert stop.exit_code == 130
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_background_job_that_ignores_interrupts_goes_on_doing_so() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop = StopRequest()
    stop.hold_interrupts()
    signal.raise_signal(signal.SIGINT)
    assert stop.reason is None


def test_in_a_child_any_number_of_interrupts_is_one_request() -> None:
    stop = StopRequest()
    stop.listen_as_child(float("inf"))
    stop.hold_interrupts()
    for _ in range(3):
        signal.raise_signal(signal.SIGINT)
    assert stop.reason == "SIGINT"


def test_a_time_budget_counts_from_when_it_began() -> None:
    stop = StopRequest()
    stop.allow(None)
    assert stop.reason is None
    stop.allow(1e-9)
    assert stop.reason == "run.max_minutes"
    assert stop.exit_code == 85
    stop.allow(60)
    assert stop.reason is None


def test_once_all_is_done_no_signal_changes_the_exit_code() -> None:
    late = (
        "import atexit, os, signal, sys\n"
        "from trainer.preemption import StopRequest\n"
        "class Last:\n"
        "    def __del__(self, kill=os.kill, pid=os.getpid()):\n"
        "        kill(pid, 15)\n"
        "sys.last = Last()\n"  # goes when the interpreter has put its own handlers back
        "stop = StopRequest()\n"
        "stop.listen()\n"
        "stop.close()\n"
        "sys.exit(85)\n"
    )
    assert subprocess.run([sys.executable, "-c", late], timeout=60, check=False).returncode == 85


def test_what_comes_while_a_process_starts_is_remembered_by_it() -> None:
    """The child is sent a signal before it can have a handler."""
    child = (
        "import signal, time\n"
        "from trainer.preemption import StopRequest\n"
        "stop = StopRequest()\n"
        "stop.listen_as_child(float('inf'))\n"
        "print(stop.reason)\n"
    )
    with held():
        process = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE, text=True)
    process.send_signal(signal.SIGUSR1)
    assert process.communicate(timeout=60)[0] == "SIGUSR1\n"


def test_what_comes_while_signals_are_held_is_handled_after(capfd: pytest.CaptureFixture[str]) -> None:
    stop = StopRequest()
    stop.listen()
    with held():
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0)  # a place for a handler to run
        assert stop.reason is None
    assert stop.reason == "SIGTERM"
