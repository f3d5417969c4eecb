"""Progress with rate and time left: a bar on a terminal, elsewhere a plain line now and then."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

EVERY = 10.0
"""Seconds between two lines where there is no terminal."""
LINES = 6
"""The rate is taken over this many of them."""


def counted(number: int, noun: str) -> str:
    """`1 shard`, `2,000 shards`, `2 properties`, `2 processes`."""
    several = f"{noun[:-1]}ies" if noun.endswith("ty") else f"{noun}{'es' if noun.endswith('s') else 's'}"
    return f"{number:,} {noun if number == 1 else several}"


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "", style="progress.data.speed")


@contextmanager
def progress_bar(title: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show progress on standard error while the block runs; yields the function that advances it."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(title, total, console).advance
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda count: progress.advance(task, count)


class _Lines:
    """Counts, and prints a line when the last one is `EVERY` seconds old."""

    def __init__(self, title: str, total: int | None, console: Console) -> None:
        self.title, self.total, self.console = title, total, console
        self.count = 0
        self._seen = deque([(monotonic(), 0)], maxlen=LINES + 1)

    def advance(self, count: int) -> None:
        self.count += count
        now = monotonic()
        if now - self._seen[-1][0] < EVERY:
            return
        start, before = self._seen[0]
        self._seen.append((now, self.count))
        rate = (self.count - before) / (now - start)
        line = f"{self.title}: {self.count:,}"
        if self.total is not None:
            line += f" of {self.total:,}"
        line += f", {rate:,.0f}/s" if rate >= 10 else f", {rate:.1f}/s"
        if self.total is not None and rate > 0:
            line += f", {_duration(max(self.total - self.count, 0) / rate)} left"
        self.console.out(line, highlight=False)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
