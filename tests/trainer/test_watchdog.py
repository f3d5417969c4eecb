"""A step that hangs: its stacks are told, and nothing is ended."""

import time
from pathlib import Path

import pytest

from trainer.watchdog import Watchdog

MINUTES = 0.2 / 60


def stay_in_this_function(until: float, capfd: pytest.CaptureFixture[str]) -> str:
    said = ""
    while "takes more than" not in said and time.monotonic() < until:
        time.sleep(0.05)
        said += capfd.readouterr().err
    return said


def test_stacks_are_printed_with_the_rank_and_kept_in_a_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with Watchdog(tmp_path, 3, MINUTES) as watchdog:
        watchdog.heard("step 12")
        said = stay_in_this_function(time.monotonic() + 60, capfd)
    assert said.startswith("rank 3: step 12 takes more than")
    assert "rank 3 |" in said
    assert "in stay_in_this_function" in said
    assert "in stay_in_this_function" in (tmp_path / "stacks/rank-3.txt").read_text()


def test_a_run_that_goes_on_leaves_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Watchdog(tmp_path, 0, 10) as watchdog:
        for step in range(1000):
            watchdog.heard(f"step {step}")
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr().err == ""


def test_of_ranks_that_a_run_has_no_more_only_what_was_written_stays(tmp_path: Path) -> None:
    stacks = tmp_path / "stacks"
    stacks.mkdir()
    for rank, text in enumerate(("", "", "", "in _do")):
        (stacks / f"rank-{rank}.txt").write_text(text)
    Watchdog.remove_leftovers(tmp_path, world=2)
    assert sorted(path.name for path in stacks.iterdir()) == ["rank-0.txt", "rank-1.txt", "rank-3.txt"]


def test_without_minutes_nothing_is_watched(tmp_path: Path) -> None:
    with Watchdog(tmp_path, 0, None) as watchdog:
        watchdog.heard("step 1")
        assert not list(tmp_path.iterdir())
