"""The command line as a user types it, on a small demo data set."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, run_itm

TINY = REPOSITORY / "tests/end_to_end/tiny.yaml"
WHOLE = REPOSITORY / "tests/end_to_end/whole.yaml"
Itm = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def itm() -> Itm:
    """Run `itm ARGUMENTS`; with `fails=True` it must exit with 1 and one line that names the mistake."""

    def run(*arguments: object, fails: bool = False) -> subprocess.CompletedProcess[str]:
        done = run_itm(REPOSITORY, *arguments)
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
    itm("shards", "concepts", out / "train", "--out", out / "concepts.json", "--size", 30, "--processes", 1)
    return out


@pytest.fixture(scope="session")
def reference(itm: Itm, demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run: one process, ZeRO-0."""
    run = tmp_path_factory.mktemp("runs") / "reference"
    itm("train", TINY, f"run.dir={run}", *data_of(demo), "engine.zero_stage=0")
    return run


@pytest.fixture(scope="session")
def whole(itm: Itm, demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run with every term of both methods: one process, ZeRO-0."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    itm("train", WHOLE, f"run.dir={run}", *whole_of(demo), "engine.zero_stage=0")
    return run


def data_of(demo: Path) -> tuple[str, str]:
    return f"data.train={demo / 'train'}", f"data.val={demo / 'val'}"


def whole_of(demo: Path) -> tuple[str, str, str]:
    """`data_of`, and the concepts that `WHOLE` needs."""
    return *data_of(demo), f"model.consensus.concepts={demo / 'concepts.json'}"


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["loss"] for row in rows]
