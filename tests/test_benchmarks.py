"""The benchmarks start, so that a figure can be measured again; those that reach into a step run small."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ENVIRONMENT, REPOSITORY

FOLDER = REPOSITORY / "benchmarks"
TINY = "--architecture itm-tiny --batch 4"


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("*.py") if path.name != "resident.py"))
def test_what_it_measures_is_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    found = runpy.run_path(str(FOLDER / name), run_name="benchmark")
    assert callable(found["main"])


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("memory.py", f"{TINY} --width 16 --queue 16 --prototypes 4 --steps 1", "upkeep, these four"),
        ("step.py", f"{TINY} --embed-dim 16 --rounds 1 --methods clip aahr", "momentum towers"),
        ("monitoring.py", "--steps 2", "every step"),
        ("optimizer.py", "1000", "fused"),
        ("shuffle_quality.py", "64 500", "this project"),
        ("ahrl.py", "8 512 16", "MiB"),
    ],
)
def test_it_measures(name: str, arguments: str, told: str, tmp_path: Path) -> None:
    command = [sys.executable, FOLDER / name, *arguments.split()]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert told in done.stdout
