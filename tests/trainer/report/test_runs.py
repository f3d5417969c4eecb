"""What is read of a run's folder, and what is said where it cannot be."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.trainer.report.conftest import write_logs
from trainer.errors import RunError
from trainer.logs import METRICS
from trainer.outcome import OUTCOME, write_outcome
from trainer.report.curves import curves
from trainer.report.environment import run_facts
from trainer.report.runs import Run, read_runs

MakeRun = Callable[..., Path]


def read(path: Path) -> Run:
    (run,) = read_runs([path])
    return run


def test_runs_of_one_name_are_told_apart_by_their_parents(tmp_path: Path, make_run: MakeRun) -> None:
    paths = [make_run(tmp_path / "one" / "run"), make_run(tmp_path / "two" / "run")]
    assert [run.name for run in read_runs(paths)] == ["one/run", "two/run"]


def test_the_current_folder_can_be_a_run(
    tmp_path: Path, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(make_run(tmp_path / "here"))
    assert read(Path()).name == "here"


def test_bad_folders_are_users_errors(tmp_path: Path, make_run: MakeRun) -> None:
    run = make_run(tmp_path / "run")
    with pytest.raises(RunError, match=r"no metrics\.jsonl in it; give the folder of a run"):
        read_runs([run, tmp_path])
    with pytest.raises(RunError, match="given twice"):
        read_runs([run, run / ".." / "run"])
    for text, complaint in (("{}\n", "line 1 is no row"), ('{"step": 1}\nnoise\n', "damaged"), ("[]\n", "line 1")):
        (run / METRICS).write_text(text)
        with pytest.raises(RunError, match=rf"metrics\.jsonl.*{complaint}"):
            read_runs([run])


def test_how_a_run_ended_is_told(tmp_path: Path, make_run: MakeRun) -> None:
    path = make_run(tmp_path / "run")
    assert read(path).outcome.startswith("in progress")
    write_outcome(path, "finished", 0)
    assert read(path).outcome == "finished"
    (path / OUTCOME).write_text("failed 1 process 3 on node7: no more disk\n")
    assert read(path).outcome == "failed: process 3 on node7: no more disk"


def test_time_follows_from_steps_and_throughput(tmp_path: Path, make_run: MakeRun) -> None:
    path = make_run(tmp_path / "run", data={"global_batch_size": 10})
    rows = [{"step": 5, "samples_per_second": 10.0}, {"step": 15, "samples_per_second": 50.0}]
    (path / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read(path).seconds == pytest.approx(5 + 2)


def names(run: Run) -> list[list[str]]:
    made = curves([run])
    return [[panel.name for panel in group] for group in (made.losses, made.recalls, made.training)]


def test_every_logged_term_has_a_chart(tmp_path: Path, make_run: MakeRun) -> None:
    path = make_run(tmp_path / "run")
    write_logs(path, 3, grad_norm=2.0, skipped_steps=0, novelty=1.0)
    losses, recalls, training = names(read(path))
    assert losses == ["loss", "ahrl"]
    assert len(recalls) == 7 and {"image to text, R@1", "text to image, R@10", "rSum"} <= set(recalls)
    assert training == [
        "learning rate",
        "gradient norm, before clipping",
        "throughput, samples a second",
        "data wait, % of the time",
        "novelty",
    ]
    data_wait = curves([read(path)]).training[3]
    assert data_wait.now == "25"
    write_logs(path, 3, skipped_steps=1)
    assert "skipped steps" in names(read(path))[2]


def test_a_run_that_has_logged_nothing_yet_can_be_read(tmp_path: Path, make_run: MakeRun) -> None:
    path = make_run(tmp_path / "run")
    (path / METRICS).write_text("")
    (path / "evaluations.jsonl").unlink()
    run = read(path)
    assert names(run) == [[], [], []]
    assert ("trained", "no step is logged yet") in run_facts(run, None)


def test_values_that_are_no_numbers_are_counted_and_do_not_hide_the_others(
    tmp_path: Path, make_run: MakeRun
) -> None:
    path = make_run(tmp_path / "run")
    rows = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": float("nan")}, {"step": 3, "loss": None}]
    (path / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = read(path)
    assert run.not_finite == 1
    (loss,) = curves([run]).losses
    assert loss.now == "nan"
    assert "from 3 to 3" in loss.chart and "1 not finite" in loss.chart
