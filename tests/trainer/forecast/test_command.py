"""`itm plan`, as a user calls it: before a run, after it, and with mistakes."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from tests.conftest import REPOSITORY

Itm = Callable[..., "CompletedProcess[str]"]
TINY = REPOSITORY / "tests/end_to_end/tiny.yaml"


def test_before_and_after_a_run(itm: Itm, demo: Path, tmp_path: Path) -> None:
    settings = ["run.dir=run", f"data.train={demo / 'train'}", f"data.val={demo / 'val'}"]
    before = itm("plan", TINY, *settings, "--gpus", 2, "--gpu", "A100", "--out", "plan.json")
    assert before.returncode == 0, before.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    for words in ("fits", "GPU hours", "a checkpoint", "one worker gives", "shards  3 of"):
        assert words in before.stdout
    plan: dict[str, Any] = json.loads((tmp_path / "plan.json").read_text())
    assert plan["length"]["total_steps"] == 2
    assert plan["memory"]["zero_stage_2"]["fits"] is True
    assert plan["loader"]["images_per_second_a_worker"] > 0

    done = itm("train", TINY, *settings)
    assert done.returncode == 0, done.stderr
    after = itm("plan", "run", "--out", "after.json")
    assert after.returncode == 0, after.stderr
    assert "Predicted beside what the run measured" in after.stdout
    compared = json.loads((tmp_path / "after.json").read_text())["compared"]
    weights, optimizer = compared["weights file, MB"], compared["optimiser files, MB"]
    assert weights["predicted"] == weights["actual"]
    assert optimizer["predicted"] == pytest.approx(optimizer["actual"], rel=0.01)
    assert compared["steps"] == {"predicted": 2, "actual": 2, "note": "so far"}
    useful = compared["useful TFLOP a step and process"]
    # captions of the demo are shorter than they may be
    assert 0.2 < useful["actual"] / useful["predicted"] <= 1.001
    assert compared["mfu"]["actual"] is None
    assert compared["pairs a second"]["predicted"] is None


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere.yaml", "--gpus", "2"], "nowhere.yaml: no such recipe"),
        ([TINY, "--gpus", "0"], "--gpus 0: give 1 or more"),
        ([TINY], "--gpus: not given; say how many GPUs"),
        ([TINY, "--gpus", "2"], "data.train: not given; add data.train=FOLDER, a folder of shards, or --samples N"),
        ([TINY, "--gpus", "2", "data.train=gone"], "gone: no such folder"),
        ([TINY, "--gpus", "3", "--samples", "90"], "data.global_batch_size=16: does not divide among 3 processes"),
        ([TINY, "--gpus", "2", "--samples", "9", "--gpu", "H200X"], "--gpu H200X: its speed is not known here"),
        ([TINY, "--gpus", "2", "--samples", "9"], "data.global_batch_size=16: more than the 9 samples"),
        ([TINY, "--gpus", "2", "--samples", "90", "--utilisation", "1.5"], "--utilisation 1.5: give a share"),
        ([TINY, "--gpus", "2", "--samples", "90", "--run", "gone"], "gone: no such run"),
        ([TINY, "--gpus", "2", "--samples", "90", "--out", "plan.txt"], "--out plan.txt: give a file that ends"),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: list[Any],
    told: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    from trainer import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["itm", "plan", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.app()
    error = capsys.readouterr().err
    assert ended.value.code == 1
    assert error.startswith(f"itm: error: {told}")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
