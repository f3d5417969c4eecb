"""The command line as a user types it, on a small demo data set."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests/end_to_end/tiny.yaml"
CLEAN = {
    key: value
    for key, value in os.environ.items()
    if not key.startswith(("SLURM_", "RANK", "WORLD_SIZE", "LOCAL_RANK"))
}

Itm = Callable[..., subprocess.CompletedProcess[str]]


def itm_command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "trainer.cli", *map(str, arguments)]


@pytest.fixture(scope="session")
def itm() -> Itm:
    """Run `itm ARGUMENTS`; with `fails=True` it must exit with 1 and one line that names the mistake."""

    def run(*arguments: object, fails: bool = False, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        command = itm_command(*arguments)
        environment = CLEAN | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=300, check=False
        )
        assert done.returncode == (1 if fails else 0), done.stdout + done.stderr
        if fails:
            errors = [line for line in done.stderr.splitlines() if line.startswith("itm: error: ")]
            assert len(errors) == 1, done.stderr
            assert "Traceback" not in done.stderr
        return done

    return run


@pytest.fixture(scope="session")
def demo(itm: Itm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "demo"
    counts = ("--pretrain", 100, "--train", 100, "--val", 21, "--test", 24)
    itm("shards", "demo", "--out", out, *counts, "--side", 48, "--samples-per-shard", 30, "--processes", 1)
    return out


@pytest.fixture(scope="session")
def reference(itm: Itm, demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run: one process, ZeRO-0."""
    run = tmp_path_factory.mktemp("runs") / "reference"
    itm("train", TINY, f"run.dir={run}", *data_of(demo), "engine.zero_stage=0")
    return run


def data_of(demo: Path) -> tuple[str, str]:
    return f"data.train={demo / 'train'}", f"data.val={demo / 'val'}"


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["loss"] for row in rows]
