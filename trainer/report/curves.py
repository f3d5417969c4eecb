"""Which curves a run's logs give, a small chart each; runs are overlaid."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from trainer.report.charts import Line, line_chart, shown_number
from trainer.report.runs import Rows, Run

NAMES = {
    "lr": "learning rate",
    "grad_norm": "gradient norm, before clipping",
    "skipped_steps": "skipped steps",
    "undecodable": "undecodable samples",
    "samples_per_second": "throughput, samples a second",
    "data_wait": "data wait, % of the time",
    "mfu": "model FLOPs utilisation, %",
    "tflops_per_second": "useful TFLOP a second and process",
    "memory_gb": "memory of a process, GB",
    "cuda_allocated_gb": "GPU memory in tensors, GB",
    "cuda_reserved_gb": "GPU memory kept, GB",
    "checkpoint_stall": "stalled by a checkpoint, seconds",
}
PERCENT = ("data_wait", "mfu")
UNSEEN = ("step", "epoch")
IF_ANY = ("skipped_steps", "undecodable")
"""Drawn where it ever was not 0."""
RECALLS = ("i2t.r1", "i2t.r5", "i2t.r10", "t2i.r1", "t2i.r5", "t2i.r10", "rsum")
_RECALL_NAMES = {"rsum": "rSum", "i2t": "image to text", "t2i": "text to image"}


@dataclass(frozen=True)
class Panel:
    """A chart with its name, and the newest value where it shows one run."""

    name: str
    now: str
    chart: Markup


@dataclass(frozen=True)
class Curves:
    """All charts of a page."""

    losses: list[Panel]
    """The loss, its terms before their weights, and what these log of themselves."""
    recalls: list[Panel]
    """On val, in percent."""
    training: list[Panel]
    """Learning rate, throughput, data wait and what else is measured."""


def curves(runs: Sequence[Run]) -> Curves:
    """One chart a logged value, with a line for every run that has it."""
    losses, others = _keys(runs)
    last = max((row["step"] for run in runs for row in (*run.metrics, *run.evaluations)), default=0)
    return Curves(
        [_panel(key.replace("_", " "), key, runs, last) for key in losses],
        [_recall(key, runs, last) for key in RECALLS] if any(run.evaluations for run in runs) else [],
        [_panel(NAMES.get(key, key.replace("_", " ")), key, runs, last) for key in others],
    )


def _keys(runs: Sequence[Run]) -> tuple[list[str], list[str]]:
    """What is logged before the learning rate is of the loss, as `trainer.loop` writes it; the rest is not."""
    losses: dict[str, None] = {}
    others: dict[str, None] = {}
    for run in runs:
        for row in run.metrics:
            into = losses
            for key, value in row.items():
                into = others if key == "lr" else into
                if key not in UNSEEN and _is_number(value) and (key not in IF_ANY or value):
                    into[key] = None
    ordered = sorted(others, key=lambda key: list(NAMES).index(key) if key in NAMES else len(NAMES))
    return sorted(losses, key=lambda key: key != "loss"), [key for key in ordered if key not in losses]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _panel(name: str, key: str, runs: Sequence[Run], last: int) -> Panel:
    factor = 100 if key in PERCENT else 1
    return _chart(name, [_line(run.name, run.metrics, (key,), factor) for run in runs], last)


def _recall(key: str, runs: Sequence[Run], last: int) -> Panel:
    side, _, k = key.partition(".")
    name = f"{_RECALL_NAMES[side]}{f', R@{k[1:]}' if k else ''}"
    return _chart(name, [_line(run.name, run.evaluations, key.split(".")) for run in runs], last)


def _line(name: str, rows: Rows, keys: Sequence[str], factor: int = 1) -> Line:
    points = [(row["step"], value) for row in rows if (value := _value(row, keys)) is not None]
    return Line(name, [float(step) for step, _ in points], [factor * value for _, value in points])


def _value(row: Any, keys: Iterable[str]) -> float | None:
    for key in keys:
        row = row.get(key) if isinstance(row, dict) else None
    return float(row) if _is_number(row) else None


def _chart(name: str, lines: list[Line], last_step: int) -> Panel:
    now = ""
    if len(lines) == 1 and lines[0].ys:
        last = lines[0].ys[-1]
        now = shown_number(last) if math.isfinite(last) else str(last)
    return Panel(name, now, line_chart(name, lines, last_step))
