"""A run that is told to stop saves, ends with its own exit code, and goes on as if nothing had happened."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.conftest import ENVIRONMENT, REPOSITORY, itm_command
from tests.end_to_end.conftest import WHOLE, Itm, losses, whole_of
from tests.end_to_end.test_one_math import agrees, wait_for

pytestmark = pytest.mark.slow

LONG = ("schedule.epochs=500", "checkpoint.every_epochs=500", "evaluation.every_epochs=500")


def start(run: Path, demo: Path, *settings: object, module: str = "trainer.cli") -> subprocess.Popen[str]:
    """In a session of its own, whose processes a terminal's Ctrl-C would all reach."""
    arguments = itm_command("train", WHOLE, f"run.dir={run}", *whole_of(demo), *settings)
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments[3:]],
        cwd=REPOSITORY,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def saved_steps(run: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in sorted(run.glob("checkpoints/*"))]


def catches(pid: int, number: signal.Signals) -> bool:
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(status["SigCgt"], 16) >> (number - 1) & 1)


def test_a_signal_to_one_process_stops_all_and_the_curve_goes_on(
    itm: Itm, demo: Path, whole: Path, tmp_path: Path
) -> None:
    """Stopped under ZeRO-2 with the optimiser offloaded, resumed under ZeRO-3 with everything offloaded."""
    run = tmp_path / "run"
    offload = "engine.offload_optimizer=cpu"
    # as long as the reference, so that all schedules are the same; stopped after its first rows
    process = start(run, demo, "engine.zero_stage=2", offload, "--processes", 2, "data.workers=1")
    wait_for(run / "metrics.jsonl")
    while not (run / "metrics.jsonl").read_text():
        assert process.poll() is None
    for child in psutil.Process(process.pid).children():
        if catches(child.pid, signal.SIGUSR1):
            child.send_signal(signal.SIGUSR1)
            child.send_signal(signal.SIGTERM)  # a scheduler does not send it once
            break
    assert process.wait(timeout=300) == 85, process.stderr.read()
    stopped = len(losses(run))
    assert 0 < stopped < 12, "the run had ended before it was stopped"
    assert saved_steps(run)[-1] == stopped
    itm(
        "train",
        WHOLE,
        f"run.dir={run}",
        *whole_of(demo),
        "engine.zero_stage=3",
        offload,
        "engine.offload_parameters=cpu",
    )
    agrees(run, whole)


def test_a_signal_before_anything_is_imported_is_remembered(demo: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(run, demo, *LONG, "--processes", 2)
    while not catches(process.pid, signal.SIGTERM):
        assert process.poll() is None
    assert b"torch" not in Path(f"/proc/{process.pid}/maps").read_bytes()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=300) == 85
    assert saved_steps(run) == []


def test_the_first_interrupt_saves_and_the_second_stops_at_once(demo: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(run, demo, *LONG, "data.workers=1")
    wait_for(run / "metrics.jsonl")
    while len((run / "metrics.jsonl").read_text().splitlines()) < 2:
        assert process.poll() is None
    for each in psutil.Process(process.pid).children(recursive=True):
        each.send_signal(signal.SIGINT)  # a terminal tells them all
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=300) == 130
    said = process.stderr.read()
    assert said.count("itm: stopping after this step; press again to stop at once") == 1
    assert "Traceback" not in said
    assert saved_steps(run) == [len(losses(run))]


def test_a_time_budget_stops_it_and_what_was_due_is_made_up_for(itm: Itm, demo: Path, tmp_path: Path) -> None:
    """The budget is over from the beginning; still a step is made, here the last, whose evaluation is left out."""
    run = tmp_path / "run"
    settings = ("schedule.epochs=0.17", "--processes", 2)  # one step
    process = start(run, demo, "run.max_minutes=0.0001", *settings)
    assert process.wait(timeout=300) == 85, process.stderr.read()
    assert saved_steps(run) == [1]
    state = run / "checkpoints/step-00000001/state.json"
    assert json.loads(state.read_text())["val"] is None
    itm("train", WHOLE, f"run.dir={run}", *whole_of(demo), *settings)
    assert json.loads(state.read_text())["val"]["num_images"] == 21
    done = itm("train", WHOLE, f"run.dir={run}", *whole_of(demo), *settings)
    assert "already trained to step 1" in done.stdout
