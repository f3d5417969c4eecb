"""What a run has measured, beside what is foretold of it."""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from trainer.checkpoint import OPTIMIZER, WEIGHTS, Checkpoint
from trainer.checkpoint_folder import look_for_checkpoints
from trainer.errors import RunError
from trainer.forecast.forecast import GB, Forecast
from trainer.logs import METRICS, read_rows


@dataclass(frozen=True)
class Run:
    """A run's folder, as far as it has come."""

    path: Path
    rows: list[dict[str, Any]]
    checkpoint: Checkpoint | None
    """The newest."""

    @property
    def processes(self) -> int | None:
        """That saved the newest checkpoint."""
        if self.checkpoint is None:
            return None
        return sum(Path(name).match(OPTIMIZER) for name in self.checkpoint.files)

    def typical(self, key: str) -> float | None:
        """The median of a column, without the first row, which has what happens once."""
        values = [row[key] for row in self.rows if key in row]
        return statistics.median(values[1:] or values) if values else None

    def highest(self, key: str) -> float | None:
        return max((row[key] for row in self.rows if key in row), default=None)


@dataclass(frozen=True)
class Compared:
    """One row of the comparison."""

    what: str
    predicted: float | None
    actual: float | None
    note: str

    @property
    def ratio(self) -> float | None:
        """Actual by predicted."""
        return self.actual / self.predicted if self.predicted and self.actual is not None else None


def read_run(path: Path) -> Run:
    """Raises `RunError` for a folder in which nothing was measured."""
    if not path.is_dir():
        raise RunError(f"{path}: no such run")
    try:
        rows = read_rows(path / METRICS)
    except json.JSONDecodeError as error:
        raise RunError(f"{path / METRICS}: not what a run writes ({error})") from None
    if not rows:
        raise RunError(f"{path}: holds no {METRICS} with a row; give the folder of a run that has begun")
    checkpoints = look_for_checkpoints(path / "checkpoints").whole
    return Run(path, rows, checkpoints[-1] if checkpoints else None)


def compare(forecast: Forecast, run: Run) -> list[Compared]:
    """Row by row; where one side is None the two cannot be compared, and the note says why."""
    memory, own = forecast.memory(forecast.stage), forecast.length
    rows = [*_memory(memory.total - memory.gpu["allowance"], memory.total, run)]
    speed = run.typical("samples_per_second")
    batch = forecast.recipe.data.global_batch_size
    note = "over all processes" if own.samples_per_second else "needs --gpu"
    rows.append(Compared("pairs a second", own.samples_per_second, speed, note))
    rows.append(Compared("seconds a step", own.step_seconds, speed and batch / speed, note))
    tflops = run.typical("tflops_per_second")
    useful = None if not (tflops and speed) else tflops * batch / speed
    rows.append(
        Compared("useful TFLOP a step and process", forecast.measured.step.useful_flops / 1e12, useful,
                 "predicted for the longest captions")
    )  # fmt: skip
    mfu = forecast.machine.utilisation * own.useful_share if forecast.peak else None
    rows.append(Compared("mfu", mfu, run.typical("mfu"), "on known GPUs"))
    rows.append(Compared("steps", own.total_steps, run.rows[-1]["step"], "so far"))
    rows += _checkpoint(forecast, run)
    exchanged = sum(one.bytes for one in forecast.exchanges(forecast.stage))
    rows.append(Compared("MB exchanged a step", exchanged / 1e6, None, "not measured in a run"))
    return rows


def _memory(tensors: float, total: float, run: Run) -> list[Compared]:
    allocated, reserved = run.highest("cuda_allocated_gb"), run.highest("cuda_reserved_gb")
    if allocated is not None:
        return [
            Compared("GPU memory in tensors, GB", tensors / GB, allocated, "without the allowance"),
            Compared("GPU memory reserved, GB", total / GB, reserved, "reserved is without the CUDA context"),
        ]
    note = "roughly: actual is the whole process"
    return [Compared("memory in tensors, GB", tensors / GB, run.highest("memory_gb"), note)]


def _checkpoint(forecast: Forecast, run: Run) -> list[Compared]:
    predicted = forecast.measured.checkpoints[forecast.stage]
    if run.checkpoint is None:
        return [Compared("checkpoint, MB", predicted.total / 1e6, None, "the run has none yet")]
    files = run.checkpoint.files
    weights = files[WEIGHTS].bytes
    optimizer = sum(written.bytes for name, written in files.items() if Path(name).match(OPTIMIZER))
    return [
        Compared("weights file, MB", predicted.weights / 1e6, weights / 1e6, ""),
        Compared("optimiser files, MB", predicted.optimizer / 1e6, optimizer / 1e6, ""),
    ]


def comparison_table(rows: list[Compared]) -> Table:
    """For the terminal."""
    table = Table(title="Predicted beside what the run measured", title_justify="left")
    for name in ("", "predicted", "actual", "actual / predicted"):
        table.add_column(name, justify="right" if name else "left")
    table.add_column("")
    for row in rows:
        numbers = ("-" if one is None else f"{one:,.4g}" for one in (row.predicted, row.actual, row.ratio))
        table.add_row(row.what, *numbers, row.note)
    return table
