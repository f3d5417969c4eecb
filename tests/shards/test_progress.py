import pytest

import shards.progress
from shards.progress import counted, progress_bar


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(shards.progress, "monotonic", found)
    return found


def test_a_plain_line_now_and_then_without_a_terminal(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("convert", 100_000) as advance:
        for second in range(25):
            clock.now = second
            advance(100)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "convert: 1,100 of 100,000, 110/s, 0:14:59 left",
        "convert: 2,100 of 100,000, 105/s, 0:15:32 left",
    ]


def test_without_a_total_there_is_no_end_to_tell(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("read", None) as advance:
        clock.now = 3700.0
        advance(37)
    assert capsys.readouterr().err == "read: 37, 0.0/s\n"


def test_the_rate_is_the_recent_one(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """What an earlier run had finished is counted at once, and must not promise an early end for long."""
    with progress_bar("convert", 200_000) as advance:
        advance(100_000)
        for step in range(20):
            clock.now = 10.0 * (step + 1)
            advance(1000)
    assert capsys.readouterr().err.splitlines()[-1] == "convert: 120,000 of 200,000, 100/s, 0:13:20 left"


def test_numbers_agree_with_their_nouns() -> None:
    nouns = ("shard", "property", "process")
    assert [counted(1, noun) for noun in nouns] == ["1 shard", "1 property", "1 process"]
    assert [counted(2000, noun) for noun in nouns] == ["2,000 shards", "2,000 properties", "2,000 processes"]


def test_short_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("convert", 3) as advance:
        advance(3)
    assert capsys.readouterr() == ("", "")
