"""Pretraining, fine-tuning, evaluation and report, one after the other, as a user runs them."""

import gzip
import json
import re
from pathlib import Path

import pytest

from tests.end_to_end.conftest import TINY, Itm, data_of, losses

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finetuned(itm: Itm, demo: Path, reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "finetuned"
    settings = (
        f"run.init_from={reference}",
        "optimizer.tower_lr_scale=0.1",
        "schedule.epochs=1",
        "log.tensorboard=true",
        "--trace=3",
    )
    done = itm("train", TINY, f"run.dir={run}", *data_of(demo), *settings, "--processes", 2)
    assert f"weights of {reference / 'checkpoints'}" in done.stderr
    return run


def test_evaluation_writes_the_recalls(itm: Itm, demo: Path, finetuned: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep/test.json"
    done = itm("eval", finetuned, "--data", demo / "test", "--out", out)
    result = json.loads(out.read_text())
    assert (result["num_images"], result["num_captions"]) == (24, 120)
    recalls = [result[direction][k] for direction in ("i2t", "t2i") for k in ("r1", "r5", "r10")]
    assert result["rsum"] == pytest.approx(sum(recalls))
    assert f"{result['rsum']:.1f}" in done.stdout
    assert "chance" in done.stdout


def test_a_run_is_evaluated_at_its_best_checkpoint_on_val(
    itm: Itm, demo: Path, reference: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in (reference / "evaluations.jsonl").read_text().splitlines()]
    assert all(row["split"] == "val" for row in rows)
    best = max(rows, key=lambda row: row["rsum"])
    itm("eval", reference, "--data", demo / "val", "--out", tmp_path / "run.json")
    result = json.loads((tmp_path / "run.json").read_text())
    assert result["step"] == best["step"]
    # trained in the run by another number of batches: the same up to rounding, and recalls are counts
    assert result["rsum"] == pytest.approx(best["rsum"], abs=0.5)


def test_finetuning_starts_where_pretraining_ended(reference: Path, finetuned: Path) -> None:
    assert losses(finetuned)[0] < losses(reference)[0]


def test_tensorboard_is_written(finetuned: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(finetuned / "tensorboard"))
    board.Reload()
    assert [event.value for event in board.Scalars("train/loss")] == pytest.approx(losses(finetuned))


def test_a_step_is_traced_on_every_rank(finetuned: Path) -> None:
    for rank in (0, 1):
        trace = finetuned / f"trace/step-3-rank-{rank}.json.gz"
        names = {event["name"] for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]}
        assert {"wait for data", "aten::_fused_adamw_"} <= names, "the step from its batch to the optimiser"
        assert "Self CPU" in trace.with_name(f"step-3-rank-{rank}.txt").read_text()


def test_speed_memory_and_arithmetic_are_measured(finetuned: Path) -> None:
    rows = [json.loads(line) for line in (finetuned / "metrics.jsonl").read_text().splitlines()]
    for key in ("samples_per_second", "memory_gb", "tflops_per_second"):
        assert all(row[key] > 0 for row in rows)
    assert all(0 <= row["data_wait"] <= 1 for row in rows)


def test_the_report_is_one_self_contained_page(
    itm: Itm, demo: Path, reference: Path, finetuned: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report.html"
    itm("report", reference, finetuned, "--data", demo / "test", "--out", out)
    page = out.read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page)
    assert page.count("<svg") > 5, "curves"
    assert page.count("data:image/jpeg;base64,") > 40, "queries with what was found"


def test_a_finished_run_is_not_trained_again(itm: Itm, demo: Path, reference: Path) -> None:
    before = (reference / "metrics.jsonl").read_text()
    done = itm("train", TINY, f"run.dir={reference}", *data_of(demo), "engine.zero_stage=0")
    assert "already trained to step 12" in done.stdout
    assert (reference / "metrics.jsonl").read_text() == before


def test_only_the_newest_and_the_best_checkpoints_are_kept(reference: Path) -> None:
    kept = sorted(path.name for path in (reference / "checkpoints").iterdir())
    assert kept == ["step-00000006", "step-00000012"]


def test_dry_run_trains_nothing(itm: Itm, demo: Path, tmp_path: Path) -> None:
    done = itm("train", TINY, f"run.dir={tmp_path / 'run'}", *data_of(demo), "--dry-run", "--processes", 2)
    assert "12 of 16 pairs" in done.stderr
    assert not (tmp_path / "run").exists()
