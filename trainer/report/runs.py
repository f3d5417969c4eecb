"""What a run's folder tells of it: its logs, its recipe, how it ended."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.checkpoint import RECIPE
from trainer.checkpoint_folder import find_checkpoint
from trainer.config import Recipe
from trainer.errors import RunError
from trainer.logs import EVALUATIONS, METRICS, read_rows
from trainer.outcome import OUTCOME
from trainer.recipe import load_recipe

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Run:
    """A run as it stands on disk, finished or not."""

    name: str
    path: Path
    metrics: Rows
    evaluations: Rows
    recipe: Recipe
    outcome: str
    """In words."""

    @property
    def last(self) -> dict[str, Any]:
        """The newest row of the metrics; empty where nothing is logged yet."""
        return self.metrics[-1] if self.metrics else {}

    @property
    def seconds(self) -> float:
        """Spent in training steps, by the logged throughput; evaluations and checkpoints left out."""
        total, before = 0.0, 0
        for row in self.metrics:
            rate = row.get("samples_per_second", 0)
            if rate and math.isfinite(rate):
                total += (row["step"] - before) * self.recipe.data.global_batch_size / rate
            before = row["step"]
        return total

    @property
    def not_finite(self) -> int:
        """Logged values that are no finite numbers."""
        return sum(
            isinstance(value, float) and not math.isfinite(value) for row in self.metrics for value in row.values()
        )


def read_runs(paths: list[Path]) -> list[Run]:
    """The runs in these folders. Raises `RunError` when one is no run, or is given twice."""
    for path in paths:
        if not (path / METRICS).is_file():
            raise RunError(f"{path}: no {METRICS} in it; give the folder of a run")
    resolved = [path.resolve() for path in paths]
    for path in paths:
        if resolved.count(path.resolve()) > 1:
            raise RunError(f"{path}: given twice; give each run once")
    return [_read(name, path) for name, path in zip(_names(resolved), paths, strict=True)]


def _read(name: str, path: Path) -> Run:
    own = path / RECIPE
    recipe = load_recipe(own) if own.is_file() else find_checkpoint(path).recipe
    return Run(name, path, _rows(path / METRICS), _rows(path / EVALUATIONS), recipe, _outcome(path))


def _rows(path: Path) -> Rows:
    try:
        rows = read_rows(path)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: damaged: {error}; bring it back from a copy, or remove the line") from None
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise RunError(f"{path}: line {number} is no row of a log; bring it back from a copy, or remove it")
    return rows


def _outcome(path: Path) -> str:
    try:
        word, _code, *said = (path / OUTCOME).read_text(errors="replace").split(maxsplit=2)
    except (OSError, ValueError):
        return "in progress, or killed before it could say how it ended"
    meanings = {"finished": "finished", "saved": "stopped and saved before its end", "failed": "failed"}
    return ": ".join([meanings.get(word, word), *(part.strip() for part in said)])


def _names(runs: list[Path]) -> list[str]:
    """The folders' names, with as many of their parents as it takes to tell the runs apart."""
    deepest = max(len(run.parts) for run in runs)
    for depth in range(1, deepest):
        names = ["/".join(run.parts[-depth:]) for run in runs]
        if len(set(names)) == len(runs):
            return names
    return [str(run) for run in runs]
