"""One process of a run is gone: all end soon, and the user reads why, once. Other faults: test_faulty_runs.py."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ENVIRONMENT, REPOSITORY, itm_command
from tests.end_to_end.conftest import WHOLE, whole_of

pytestmark = pytest.mark.slow

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
PROGRAM = ("-m", "tests.end_to_end.faulty")


def run_faulty(
    run: Path, demo: Path, fault: str, *settings: str, torchrun: bool = False
) -> subprocess.CompletedProcess[str]:
    arguments = itm_command("train", WHOLE, f"run.dir={run}", *whole_of(demo), *settings)[3:]
    launch = [*TORCHRUN, *PROGRAM, *arguments]
    if not torchrun:
        launch = [sys.executable, *PROGRAM, *arguments, "--processes", "2"]
    return subprocess.run(
        launch,
        cwd=REPOSITORY,
        env=ENVIRONMENT | {"FAULT": fault},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def errors(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith("itm: error: ")]


def test_the_first_error_under_a_launcher_is_told_once(demo: Path, tmp_path: Path) -> None:
    done = run_faulty(tmp_path / "run", demo, "refuse 0 3", torchrun=True)
    assert errors(done) == ["itm: error: a user's error in the middle"]
    assert "Connection closed" not in done.stderr


def test_a_killed_process_is_told_of(demo: Path, tmp_path: Path) -> None:
    done = run_faulty(tmp_path / "run", demo, "kill 1 3")
    (error,) = errors(done)
    assert error.startswith("itm: error: process 1 was ended by SIGKILL; out of memory?")
    assert "Traceback" not in done.stderr
