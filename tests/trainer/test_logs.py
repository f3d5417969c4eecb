import io
import json
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from trainer import logs
from trainer.config import LogConfig, Recipe
from trainer.errors import RunError
from trainer.lease import Lease
from trainer.logs import EVALUATIONS, METRICS, RunLog, read_rows


def row(step: int) -> dict[str, Any]:
    speed = {"samples_per_second": 10.0, "data_wait": 0.5, "memory_gb": 1.25}
    return {"step": step, "loss": 1 / step, "base": 2.5, **speed}


def evaluation(step: int) -> dict[str, Any]:
    recalls = {"r1": 1.0, "r5": 2.0, "r10": 3.0}
    return {"step": step, "split": "val", "i2t": recalls, "t2i": recalls, "rsum": 12.0}


@contextmanager
def open_log(folder: Path, start: int = 0) -> Iterator[RunLog]:
    recipe = Recipe(log=LogConfig(tensorboard=False))
    with Lease(folder) as lease, RunLog(lease, total_steps=9, start_step=start, recipe=recipe) as log:
        yield log


def write_run(folder: Path, start: int, steps: range) -> None:
    with open_log(folder, start) as log:
        for step in steps:
            log.advance()
            log.metrics(row(step), ["loss", "base"])
            if step % 2 == 0:
                log.evaluation(evaluation(step))


def steps_of(path: Path) -> list[int]:
    return [logged["step"] for logged in read_rows(path)]


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    write_run(tmp_path / "run", 0, range(1, 5))
    assert read_rows(tmp_path / "run" / METRICS) == [row(step) for step in range(1, 5)]
    assert read_rows(tmp_path / "run" / EVALUATIONS) == [evaluation(2), evaluation(4)]


def test_rows_can_be_read_while_the_run_goes_on(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.metrics(row(1))
        assert steps_of(tmp_path / METRICS) == [1]


def test_without_a_file_there_are_no_rows(tmp_path: Path) -> None:
    assert read_rows(tmp_path / METRICS) == []


@pytest.mark.parametrize("torn", ['{"step": 3, "lo', '{"step": 3}'], ids=["half a row", "only the end missing"])
def test_a_last_line_that_was_cut_short_is_left_out(tmp_path: Path, torn: str) -> None:
    (tmp_path / METRICS).write_text('{"step": 1}\n{"step": 2}\n' + torn)
    assert steps_of(tmp_path / METRICS) == [1, 2]


def test_a_resumed_run_drops_the_rows_that_it_does_again(tmp_path: Path) -> None:
    write_run(tmp_path, 0, range(1, 8))
    with (tmp_path / METRICS).open("a") as stream:
        stream.write('{"step": 8, "lo')
    write_run(tmp_path, 4, range(5, 7))
    assert steps_of(tmp_path / METRICS) == [1, 2, 3, 4, 5, 6]
    assert steps_of(tmp_path / EVALUATIONS) == [2, 4, 6]
    assert (tmp_path / METRICS).read_text().endswith(json.dumps(row(6)) + "\n")


def test_a_new_run_in_a_folder_without_checkpoints_starts_its_logs_anew(tmp_path: Path) -> None:
    write_run(tmp_path, 0, range(1, 4))
    write_run(tmp_path, 0, range(1, 2))
    assert steps_of(tmp_path / METRICS) == [1]
    assert steps_of(tmp_path / EVALUATIONS) == []


def test_without_a_terminal_the_last_step_and_evaluations_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path, 6, range(7, 10))
    printed = capsys.readouterr().err
    assert "step 9/9  loss 0.1111  10 samples/s  data wait 50%  1.2 GB  base 2.5" in printed
    assert "step 8  val: image to text R@1/5/10 1.0 2.0 3.0  text to image 1.0 2.0 3.0  rSum 12.0" in printed
    assert "step 8/9" not in printed  # a line every ten seconds, the first at once
    assert "step 7/9" in printed


def test_the_time_left_is_that_at_the_speed_so_far(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter([50.0, 50.0, 110.0, 110.0, 170.0, 170.0])  # read twice a row
    with open_log(tmp_path) as log, monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: next(now))
        for step in (1, 3, 5):
            log.metrics(row(step))
    first, second, third = capsys.readouterr().err.splitlines()
    assert "left" not in first, "one step says nothing about the speed"
    assert "  0:03:00 left" in second, "6 steps of 30 seconds"
    assert "  0:02:00 left" in third


def test_a_terminal_shows_a_bar_and_the_terms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(
        logs, "Console", lambda **_: Console(file=screen, force_terminal=True, width=100, highlight=False)
    )
    write_run(tmp_path, 0, range(1, 10))
    shown = screen.getvalue()
    assert "9/9" in shown
    assert "loss 0.1111  10 samples/s  data wait 50%  1.2 GB" in shown
    assert "base 2.5" in shown
    assert "step 9/9" not in shown


def test_a_note_is_printed_as_it_stands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_log(tmp_path) as log:
        log.note("[red]weights[/red] of " + "x" * 300)
    assert "[red]weights[/red] of " + "x" * 300 in capsys.readouterr().err


def test_a_full_disk_is_told_with_the_file_s_name_and_the_mend(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        with open_log(tmp_path) as log:
            log.metrics(row(1))
            resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / METRICS).stat().st_size + 5, before[1]))
            log.metrics(row(2))

    try:
        with pytest.raises(RunError, match=rf"{METRICS}: cannot be written \(File too large\); make room"):
            fill()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert steps_of(tmp_path / METRICS) == [1]
