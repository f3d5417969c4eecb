"""A run that is told to stop saves, ends with its own exit code, and goes on as if nothing had happened."""

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import ENVIRONMENT, REPOSITORY, itm_command
from tests.end_to_end.conftest import WHOLE, Itm, losses, whole_of
from tests.end_to_end.test_faults import run_faulty
from tests.end_to_end.test_one_math import agrees, wait_for

pytestmark = pytest.mark.slow

LONG = ("schedule.epochs=500", "checkpoint.every_epochs=500", "evaluation.every_epochs=500")


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(demo: Path) -> Iterator[Start]:
    """`itm train` in the background; what a failed test leaves of it is killed."""
    started: list[subprocess.Popen[str]] = []

    def begin(run: Path, *settings: object) -> subprocess.Popen[str]:
        command = itm_command("train", WHOLE, f"run.dir={run}", *whole_of(demo), *settings)
        process = subprocess.Popen(command, cwd=REPOSITORY, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            for one in [*psutil.Process(process.pid).children(recursive=True), process]:
                one.kill()
        process.communicate()


def saved_steps(run: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in sorted(run.glob("checkpoints/*"))]


def catches(pid: int, number: signal.Signals) -> bool:
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(status["SigCgt"], 16) >> (number - 1) & 1)


def test_a_signal_to_one_process_stops_all_and_the_curve_goes_on(
    itm: Itm, demo: Path, whole: Path, tmp_path: Path
) -> None:
    """Stopped under ZeRO-2 with the optimiser offloaded, resumed under ZeRO-3 with everything offloaded."""
    run, offload = tmp_path / "run", "engine.offload_optimizer=cpu"
    done = run_faulty(run, demo, "stop 1 4", "engine.zero_stage=2", offload, "data.workers=1")
    assert done.returncode == 85, done.stderr
    stopped = len(losses(run))
    assert 4 <= stopped <= 6, "a step or two after the signal"
    assert saved_steps(run)[-1] == stopped
    assert f"stopped after step {stopped}" in done.stderr
    settings = ("engine.zero_stage=3", offload, "engine.offload_parameters=cpu")
    itm("train", WHOLE, f"run.dir={run}", *whole_of(demo), *settings)
    agrees(run, whole)


def test_a_signal_before_anything_is_imported_is_remembered(start: Start, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(run, *LONG, "--processes", 2)
    while not catches(process.pid, signal.SIGTERM):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=300) == 85
    assert saved_steps(run) == []


def test_a_first_interrupt_saves_and_stops(start: Start, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(run, *LONG, "data.workers=1", "--processes", 2)
    wait_for(run / "metrics.jsonl")
    while len((run / "metrics.jsonl").read_text().splitlines()) < 2:
        time.sleep(0.02)
    for each in psutil.Process(process.pid).children(recursive=True):
        each.send_signal(signal.SIGINT)  # a terminal tells them all
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=300) == 130
    said = process.stderr.read()
    assert said.count("itm: stopping after this step; press again to stop at once") == 1
    assert "Traceback" not in said
    assert saved_steps(run) == [len(losses(run))]
