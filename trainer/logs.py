"""What a run writes down as it goes: JSON lines, TensorBoard, and a live line in the terminal."""

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from shards.atomic import replacing
from trainer.lease import Lease

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


class RunLog:
    """The main process's log of the run whose lease it has. Use as a context manager."""

    def __init__(self, lease: Lease, total_steps: int, start_step: int, tensorboard: bool) -> None:
        self._lease, run_dir = lease, lease.run_dir
        for name in (METRICS, EVALUATIONS):
            _cut_after(run_dir / name, start_step)
        self._metrics = (run_dir / METRICS).open("a")
        self._evaluations = (run_dir / EVALUATIONS).open("a")
        self._board: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=start_step + 1)
        self.console = Console(stderr=True, highlight=False)
        columns = (
            TextColumn("train"),
            BarColumn(20),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
        )
        self._progress = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self._task = self._progress.add_task("train", total=total_steps, completed=start_step, text="")
        self._total_steps, self._last_line, self._embedded = total_steps, 0.0, 0

    def __enter__(self) -> "RunLog":
        self._progress.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._progress.stop()
        self._metrics.close()
        self._evaluations.close()
        if self._board is not None:
            self._board.close()

    def note(self, text: str) -> None:
        """Print one line."""
        self.console.print(text, markup=False, soft_wrap=True)

    def advance(self) -> None:
        self._progress.advance(self._task)

    def embedded(self, images: int) -> None:
        """Show that an evaluation goes on: `images` more are embedded."""
        self._embedded += images
        self._progress.update(self._task, text=f"evaluating: {self._embedded:,} images")

    def metrics(self, row: dict[str, Any]) -> None:
        """Log one step: `step`, `loss` and whatever else was measured."""
        self._write(self._metrics, row, "train")
        text = (
            f"loss {row['loss']:.4f}  {row['samples_per_second']:,.0f} samples/s  "
            f"waiting for data {row['data_wait']:.0%}"
        )
        self._progress.update(self._task, text=text)
        now = time.monotonic()
        last = row["step"] == self._total_steps
        if not self.console.is_terminal and (last or now - self._last_line > LINE_SECONDS):
            self._last_line = now
            self.note(f"step {row['step']:,}/{self._total_steps:,}  {text}")

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
        file.write(json.dumps(row) + "\n")
        file.flush()
        if self._board is not None:
            from trainer.recipe import flatten

            for name, value in flatten(row).items():
                if name != "step" and isinstance(value, int | float):
                    self._board.add_scalar(f"{tag}/{name.replace('.', '/')}", value, row["step"])
