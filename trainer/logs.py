"""What a run writes down as it goes: JSON lines, boards, and a live line in the terminal."""

import json
import time
from collections.abc import Iterable
from contextlib import nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from shards.atomic import replacing
from trainer.boards import open_boards
from trainer.config import Recipe
from trainer.errors import RunError
from trainer.lease import Lease
from trainer.recipe import flatten

METRICS = "metrics.jsonl"
EVALUATIONS = "evaluations.jsonl"
LINE_SECONDS = 10.0
"""Where there is no terminal, a line is printed this often instead of a bar."""


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; a last line that a kill cut short is left out."""
    if not path.is_file():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _cut_after(path: Path, step: int) -> None:
    """Drop the rows of steps that a resumed run will do again."""
    kept = [row for row in read_rows(path) if row["step"] <= step]
    with replacing(path) as stream:
        stream.writelines(json.dumps(row).encode() + b"\n" for row in kept)


class _Progress(Progress):
    """A bar, and below it a line of its own."""

    below = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield Text(self.below, style="dim")


class RunLog:
    """The main process's log of the run whose lease it has. Use as a context manager."""

    def __init__(self, lease: Lease, total_steps: int, start_step: int, recipe: Recipe) -> None:
        self._lease, run_dir = lease, lease.run_dir
        for name in (METRICS, EVALUATIONS):
            _cut_after(run_dir / name, start_step)
        self._metrics = (run_dir / METRICS).open("a")
        self._evaluations = (run_dir / EVALUATIONS).open("a")
        self._boards = open_boards(recipe, run_dir, start_step)
        self.console = Console(stderr=True, highlight=False)
        columns = (BarColumn(12), MofNCompleteColumn(), TextColumn("{task.fields[text]}"))
        self._progress = _Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self._task = self._progress.add_task("train", total=total_steps, completed=start_step, text="")
        self._total_steps, self._last_line, self._embedded = total_steps, 0.0, 0
        self._first: tuple[float, int] | None = None

    def __enter__(self) -> "RunLog":
        self._progress.start()
        return self

    def __exit__(self, error: object, *_details: object) -> None:
        self._progress.stop()
        for file in (self._metrics, self._evaluations):
            with suppress(OSError) if error else nullcontext():  # what could not be written before cannot be now
                file.close()
        for board in self._boards:
            board.close(failed=error is not None)

    def note(self, text: str) -> None:
        """Print one line."""
        self.console.print(text, markup=False, soft_wrap=True)

    def advance(self) -> None:
        self._progress.advance(self._task)

    def embedded(self, images: int) -> None:
        """Show that an evaluation goes on: `images` more are embedded."""
        self._embedded += images
        self._progress.update(self._task, text=f"evaluating: {self._embedded:,} images")

    def metrics(self, row: dict[str, Any], terms: Iterable[str] = ()) -> None:
        """Log one step: `step`, `loss` and whatever else was measured; `terms` are shown by name."""
        self._write(self._metrics, row, "train")
        memory = row.get("cuda_reserved_gb", row["memory_gb"])
        text = (
            f"loss {row['loss']:.4f}  {row['samples_per_second']:,.0f} samples/s  "
            f"data wait {row['data_wait']:.0%}  {memory:.1f} GB{self._left(row['step'])}"
        )
        below = "  ".join(f"{name} {row[name]:.4g}" for name in terms if name != "loss")
        self._progress.below = below
        self._progress.update(self._task, text=text)
        now = time.monotonic()
        last = row["step"] == self._total_steps
        if not self.console.is_terminal and (last or now - self._last_line > LINE_SECONDS):
            self._last_line = now
            self.note(f"step {row['step']:,}/{self._total_steps:,}  {text}  {below}".rstrip())

    def _left(self, step: int) -> str:
        """At the speed so far, evaluations and checkpoints included; the first step, which warms up, left out."""
        now = time.monotonic()
        if self._first is None or step <= self._first[1] or step == self._total_steps:
            self._first = (now, step)
            return ""
        begun, first = self._first
        seconds = (now - begun) / (step - first) * (self._total_steps - step)
        return f"  {timedelta(seconds=round(seconds))} left"

    def evaluation(self, row: dict[str, Any]) -> None:
        """Log one evaluation: `step`, `split` and the recalls."""
        self._embedded = 0
        self._write(self._evaluations, row, row["split"])
        i2t, t2i = row["i2t"], row["t2i"]
        self.note(
            f"step {row['step']:,}  {row['split']}: image to text R@1/5/10 "
            f"{i2t['r1']:.1f} {i2t['r5']:.1f} {i2t['r10']:.1f}  text to image "
            f"{t2i['r1']:.1f} {t2i['r5']:.1f} {t2i['r10']:.1f}  rSum {row['rsum']:.1f}"
        )

    def _write(self, file: Any, row: dict[str, Any], tag: str) -> None:
        self._lease.check()
        try:
            file.write(json.dumps(row) + "\n")
            file.flush()
        except OSError as error:
            raise RunError(
                f"{file.name}: cannot be written ({error.strerror}); make room or mend the disk, then start the "
                "run again: it goes on from its newest checkpoint"
            ) from None
        numbers = {
            f"{tag}/{name.replace('.', '/')}": value
            for name, value in flatten(row).items()
            if name != "step" and isinstance(value, int | float)
        }
        for board in self._boards:
            board.draw(numbers, row["step"])
