"""One rank goes wrong: all end soon, and the user reads what it was, once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ENVIRONMENT, REPOSITORY, itm_command
from tests.end_to_end.conftest import WHOLE, losses, whole_of

pytestmark = pytest.mark.slow

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
PROGRAM = ("-m", "tests.end_to_end.faulty")


def run_faulty(
    run: Path, demo: Path, fault: str, *settings: str, torchrun: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    arguments = itm_command("train", WHOLE, f"run.dir={run}", *whole_of(demo), *settings)[3:]
    launch = [*TORCHRUN, *PROGRAM, *arguments]
    if not torchrun:
        launch = [sys.executable, *PROGRAM, *arguments, "--processes", "2"]
    return subprocess.run(
        launch,
        cwd=REPOSITORY,
        env=ENVIRONMENT | {"FAULT": fault} | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def errors(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith("itm: error: ")]


def test_a_flipped_bit_in_one_queue_is_named_and_not_saved(demo: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = run_faulty(run, demo, "flip 1 4", "run.sentinel_every=2")
    (error,) = errors(done)
    assert error.startswith("itm: error: step 4: rank 1 differs in queue.images; ")
    assert done.returncode == 1
    assert len(losses(run)) == 3
    assert not list(run.glob("checkpoints/*"))


@pytest.mark.parametrize(
    ("fault", "stage", "message"),
    [
        ("nan 1 3", 2, "step 3: the loss is not finite on rank 1; "),
        ("overflow 1 3", 0, "step 3: the gradients are not finite; "),
        ("overflow 0 3", 3, "step 3: the gradients are not finite; "),
    ],
)
def test_a_step_that_is_not_finite_is_told_with_its_samples(
    demo: Path, tmp_path: Path, fault: str, stage: int, message: str
) -> None:
    run = tmp_path / "run"
    done = run_faulty(run, demo, fault, f"engine.zero_stage={stage}", "log.every_steps=100")
    (error,) = errors(done)
    path = run / "nonfinite/step-00000003.json"
    assert error.startswith(f"itm: error: {message}its samples are listed in {path}")
    told = json.loads(path.read_text())
    assert [one["rank"] for one in told["samples"]] == [0] * 8 + [1] * 8
    assert len({one["key"] for one in told["samples"]}) == 16
    assert all(Path(one["shard"]).is_file() for one in told["samples"])
    assert not list(run.glob("checkpoints/*"))


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_error_under_a_launcher_is_told_once(demo: Path, tmp_path: Path, rank: int) -> None:
    done = run_faulty(tmp_path / "run", demo, f"refuse {rank} 3", torchrun=True)
    assert errors(done) == ["itm: error: a user's error in the middle"]
    assert "Connection closed" not in done.stderr


def test_a_killed_process_is_told_of(demo: Path, tmp_path: Path) -> None:
    done = run_faulty(tmp_path / "run", demo, "kill 1 3")
    (error,) = errors(done)
    assert error.startswith("itm: error: process 1 was ended by SIGKILL; out of memory?")
    assert "Traceback" not in done.stderr


def test_a_hanging_rank_has_all_stacks_printed_and_the_run_goes_on(demo: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = ("run.watchdog_minutes=0.05", "schedule.epochs=1")
    done = run_faulty(run, demo, "hang 1 3", *settings, SECONDS="20")
    assert done.returncode == 0, done.stderr
    assert len(losses(run)) == 6
    assert "in _do" in (run / "stacks/rank-1.txt").read_text()
    assert "_do" not in (run / "stacks/rank-0.txt").read_text()
    assert "rank 0 | " in done.stderr
    assert "rank 1 | " in done.stderr


def test_float16_skips_a_step_that_overflows_and_goes_on(demo: Path, whole: Path, tmp_path: Path) -> None:
    """ZeRO-0 and ZeRO-2 skip the same steps and halve the same scale."""
    curves = []
    for stage in (0, 2):
        run = tmp_path / f"run-{stage}"
        settings = ("engine.precision=float16", f"engine.zero_stage={stage}", "schedule.epochs=1.5")
        done = run_faulty(run, demo, "overflow 1 5", *settings)
        assert done.returncode == 0, done.stderr
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == list(range(1, 10)), "applied steps"
        skipped, scale = rows[-1]["skipped_steps"], rows[-1]["gradient_scale"]
        assert skipped >= 1
        assert scale == 2.0 ** (16 - skipped)
        state = json.loads((run / "checkpoints/step-00000009/state.json").read_text())
        assert state["skipped_steps"] == skipped
        assert state["gradient_scale"]["value"] == scale
        curves.append([(row["loss"], row["skipped_steps"]) for row in rows])
    for one, other in zip(*curves, strict=True):
        assert one == pytest.approx(other, rel=0.02)
    assert curves[0][0][0] == pytest.approx(losses(whole)[0], rel=0.02)


def test_float16_that_never_applies_a_step_stops_with_the_reason(demo: Path, tmp_path: Path) -> None:
    settings = ("engine.precision=float16", "engine.max_skipped_steps=2", "optimizer.gradient_clipping=0")
    done = run_faulty(tmp_path / "run", demo, "overflow* 0 3", *settings)
    (error,) = errors(done)
    assert "step 3: skipped 2 times in a row (engine.max_skipped_steps)" in error
    assert len(losses(tmp_path / "run")) == 2
