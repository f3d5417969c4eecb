"""Whole runs on two processes in which one rank goes wrong, one after the other in the same two processes."""

import json
import os
import sys
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.multiprocessing.spawn import spawn

import trainer.loop
from tests.conftest import REPOSITORY
from trainer.deepspeed_setup import prepare_deepspeed
from trainer.distributed import World, free_port
from trainer.errors import RunError
from trainer.plan import make_plan
from trainer.preemption import StopRequest
from trainer.recipe import load_recipe

WORLD, PER_EPOCH = 2, 2  # 20 samples in batches of 8
STAGE, FP16 = "engine.zero_stage={}", "engine.precision=float16"
EPOCHS = ("schedule.epochs=3", "evaluation.every_epochs=100", "checkpoint.every_epochs=100")
CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "flip": ("flip 1 4", ("run.sentinel_every=2",)),
    "nan": ("nan 1 3", ("log.every_steps=100",)),
    "overflow 0": ("overflow 1 3", (STAGE.format(0), "log.every_steps=100")),
    "overflow 3": ("overflow 0 3", (STAGE.format(3), "log.every_steps=100")),
    "hang": ("hang 1 3", ("run.watchdog_minutes=0.05",)),
    **{f"float16 {stage}": ("overflow 1 5", (FP16, STAGE.format(stage))) for stage in range(4)},
    "float16, stuck": ("overflow* 0 3", (FP16, "engine.max_skipped_steps=25")),
    "late": ("none 0 0", ("run.max_minutes=0.0001", "schedule.epochs=0.5")),
    "late, again": ("none 0 0", ("schedule.epochs=0.5",)),
}
"""What goes wrong (see `tests/end_to_end/faulty.py`), and in which run."""


@dataclass
class Outcome:
    """What one rank saw of a run."""

    stopped: bool | None
    error: str | None
    silent: bool
    """Whether it left the words to the other."""


def run_case(name: str, demo: str, folder: str, rank: int) -> Outcome:
    fault, settings = CASES[name]
    os.environ.update(FAULT=fault, SECONDS="8", TORCHELASTIC_RESTART_COUNT=name)
    data = (f"data.train={demo}/train", f"data.val={demo}/val", "data.global_batch_size=8")
    run = f"run.dir={folder}/{name.removesuffix(', again')}"
    recipe = load_recipe(REPOSITORY / "tests/end_to_end/whole.yaml", [run, *data, *EPOCHS, *settings])
    stop = StopRequest()
    stop.allow(recipe.run.max_minutes)
    try:
        return Outcome(trainer.loop.train(make_plan(recipe, WORLD), World(rank, WORLD, rank), stop), None, False)
    except RunError as error:
        return Outcome(None, str(error), False)
    except SystemExit as end:
        assert end.code == 1
        return Outcome(None, None, True)


def measure(rank: int, port: int, demo: str, folder: str) -> None:
    torch.set_num_threads(1)
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": WORLD, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})
    import tests.end_to_end.faulty  # noqa: F401  (puts the faults in)

    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    prepare_deepspeed("gloo")
    trainer.loop.start = trainer.loop.leave = lambda *_: None  # the group stays for the next run
    outcomes = {}
    with (Path(folder) / f"{rank}.err").open("w") as said, redirect_stderr(said):
        for name in CASES:
            outcomes[name] = run_case(name, demo, folder, rank)
            dist.barrier()
    torch.save(outcomes, Path(folder) / f"{rank}.pt")
    sys.stdout.flush()
    os._exit(0)  # the group is of no more use, and its end would be waited for


@pytest.fixture(scope="module")
def runs(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faulty")
    spawn(measure, (free_port(), str(demo), str(folder)), nprocs=WORLD)
    return folder


def error_of(runs: Path, name: str) -> str:
    """The one error of a run; the other rank must have been silent."""
    told = [torch.load(runs / f"{rank}.pt", weights_only=False)[name] for rank in range(WORLD)]
    assert sorted(one.silent for one in told) == [False, True]
    (error,) = [one.error for one in told if one.error]
    return error


def rows_of(runs: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (runs / name / "metrics.jsonl").read_text().splitlines()]


def test_a_flipped_bit_in_one_queue_is_named_and_nothing_is_saved(runs: Path) -> None:
    assert error_of(runs, "flip").startswith("step 4: rank 1 differs in queue.images; ")
    assert not list((runs / "flip").glob("checkpoints/*"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nan", "the loss is not finite on rank 1"),
        ("overflow 0", "the gradients are not finite"),
        ("overflow 3", "the gradients are not finite"),
    ],
)
def test_a_step_that_is_not_finite_is_told_with_its_samples(runs: Path, name: str, message: str) -> None:
    path = runs / name / "nonfinite/step-00000003.json"
    assert error_of(runs, name).startswith(f"step 3: {message}; its samples are listed in {path}; ")
    told = json.loads(path.read_text())
    assert [one["rank"] for one in told["samples"]] == [0] * 4 + [1] * 4
    assert len({one["key"] for one in told["samples"]}) == 8
    assert all(Path(one["shard"]).is_file() for one in told["samples"])
    assert not list((runs / name).glob("checkpoints/*"))


def test_a_hanging_rank_has_all_stacks_written_and_the_run_goes_on(runs: Path) -> None:
    assert [row["step"] for row in rows_of(runs, "hang")] == list(range(1, 7))
    stacks = [(runs / f"hang/stacks/rank-{rank}.txt").read_text() for rank in range(WORLD)]
    assert ["in _do" in text for text in stacks] == [False, True]
    for rank in range(WORLD):
        said = (runs / f"{rank}.err").read_text()
        assert f"rank {rank}: step 3 takes more than 0.05 minutes" in said
        assert f"rank {rank} | " in said


def test_float16_skips_what_overflows_alike_at_every_stage(runs: Path) -> None:
    curves = [rows_of(runs, f"float16 {stage}") for stage in range(4)]
    for stage, rows in enumerate(curves):
        assert [row["step"] for row in rows] == list(range(1, 7)), "applied steps"
        skipped, scale = rows[-1]["skipped_steps"], rows[-1]["gradient_scale"]
        assert rows[3]["skipped_steps"] < skipped, "the overflow in the fifth"
        assert scale == 2.0 ** (16 - skipped)
        state = json.loads((runs / f"float16 {stage}/checkpoints/step-00000006/state.json").read_text())
        assert (state["skipped_steps"], state["gradient_scale"]["value"]) == (skipped, scale)
        batches = 6 + skipped
        assert state["loader"] == {"epoch": (batches - 1) // PER_EPOCH, "position": 8 * ((batches - 1) % 2 + 1)}
        weights = load_file(runs / f"float16 {stage}/checkpoints/step-00000006/weights.safetensors")
        entered = weights["queue.steps"].unique(return_counts=True)
        assert [one.tolist() for one in entered] == [[1, 2, 3, 4, 5], [8] * 5], "of applied steps alone, each once"
        assert weights["queue.head"] == 6 * 8 % 40
    for one, *others in zip(*curves, strict=True):
        for other in others:
            assert one["skipped_steps"] == other["skipped_steps"]
            assert one["loss"] == pytest.approx(other["loss"], rel=0.01)


def test_float16_that_applies_no_step_any_more_stops_with_the_reason(runs: Path) -> None:
    error = error_of(runs, "float16, stuck")
    assert error.startswith("step 3: skipped 25 times in a row (engine.max_skipped_steps): ")
    assert "lastly at a scale of 1;" in error


def test_a_budget_that_is_over_still_makes_a_step_and_its_evaluation_is_made_up_for(runs: Path) -> None:
    late, again = (torch.load(runs / "0.pt", weights_only=False)[name] for name in ("late", "late, again"))
    assert late.stopped
    assert not again.stopped
    state = json.loads((runs / "late/checkpoints/step-00000001/state.json").read_text())
    assert state["val"]["num_images"] == 6
    evaluations = (runs / "late/evaluations.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in evaluations] == [1]
