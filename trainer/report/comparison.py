"""Runs side by side: their results with the differences, queries won and lost, and the settings that differ."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.config import Recipe
from trainer.evaluate import Evaluation
from trainer.evaluation.tables import Row, Table
from trainer.recipe import flatten, recipe_keys
from trainer.report.contest import Contest


@dataclass(frozen=True)
class Result:
    """A run's measurement, without its embeddings."""

    name: str
    step: int
    path: str
    tables: list[Table]
    remarks: list[str]
    sources: list[str]
    first_i2t: npt.NDArray[np.bool_]
    """(N,) whether each image with a caption finds one of its own first."""
    first_t2i: npt.NDArray[np.bool_]
    """(C,) whether each caption finds its image first."""


def result_of(name: str, evaluation: Evaluation, i2t: Contest, t2i: Contest) -> Result:
    """What is kept of an evaluation when the next run is measured."""
    checkpoint = evaluation.checkpoint
    first_i2t, first_t2i = ((one.rank == 1).cpu().numpy() for one in (i2t, t2i))
    return Result(
        name,
        checkpoint.step,
        str(checkpoint.path),
        evaluation.tables(),
        evaluation.remarks(),
        evaluation.sources(),
        first_i2t,
        first_t2i,
    )


@dataclass(frozen=True)
class Line:
    """A row of a table on the page."""

    name: str
    cells: list[str]
    differences: list[str]
    """Against the first run; empty where there is nothing to compare."""
    best: list[bool]
    """Whether a number is the best of several runs."""
    kind: str
    """other, own, or range: the ends of an interval."""


@dataclass(frozen=True)
class Board:
    """The runs in one protocol's table."""

    title: str
    heads: tuple[str, ...]
    has_sum: bool
    lines: list[Line]
    notes: list[str]


def boards(results: Sequence[Result]) -> list[Board]:
    """A table a protocol: published rows and chance as they are, then the runs, with differences to the first."""
    made = []
    for place, table in enumerate(results[0].tables):
        tables = [one.tables[place] for one in results]
        split = [next(number for number, row in enumerate(one.rows) if row.own) for one in tables]
        others = [_line(row, "other") for row in table.rows[: split[0]]]
        runs = [one.rows[at : at + 3] for one, at in zip(tables, split, strict=True)]
        lines = [*others]
        for result, (own, low, high) in zip(results, runs, strict=True):
            several = [rows[0] for rows in runs] if len(runs) > 1 else []
            lines.append(_line(replace(own, name=result.name), "own", several))
            lines.append(Line("95 % interval", _ranges(low, high), [], [], "range"))
        notes = [
            f"{f'{result.name}: ' if len(results) > 1 else ''}{note}"
            for result, one in zip(results, tables, strict=True)
            for note in one.notes
        ]
        made.append(Board(table.title, table.heads, table.has_sum, lines, list(dict.fromkeys(notes))))
    return made


def _line(row: Row, kind: str, runs: Sequence[Row] = ()) -> Line:
    differences, best = [], []
    if runs and row.values != runs[0].values:
        differences = [_difference(a, b) for a, b in zip(row.values, runs[0].values, strict=True)]
    if runs:
        columns = zip(*(run.values for run in runs), strict=True)
        best = [value == max(column) for value, column in zip(row.values, columns, strict=True)]
    cells = ["–" if value is None else f"{value:.1f}" for value in row.values]
    cells[-1] += row.mark
    return Line(row.name, cells, differences, best, kind)


def _difference(value: float | None, first: float | None) -> str:
    if value is None or first is None:
        return ""
    return f"{value - first:+.1f}".replace("-", "−")


def _ranges(low: Row, high: Row) -> list[str]:
    return [
        "–" if a is None or b is None else f"{a:.1f}–{b:.1f}" for a, b in zip(low.values, high.values, strict=True)
    ]


@dataclass(frozen=True)
class Changed:
    """Queries that one run answers and the other does not, first place only."""

    name: str
    direction: str
    queries: int
    both: int
    gained: int
    lost: int


def changed_queries(results: Sequence[Result]) -> list[Changed]:
    """Each further run against the first one."""
    found = []
    for one in results[1:]:
        for direction, own, first in (
            ("image to text", one.first_i2t, results[0].first_i2t),
            ("text to image", one.first_t2i, results[0].first_t2i),
        ):
            both, gained, lost = (int(part.sum()) for part in (own & first, own & ~first, first & ~own))
            found.append(Changed(one.name, direction, len(own), both, gained, lost))
    return found


@dataclass(frozen=True)
class Setting:
    """A key of the recipe, with the value of each column."""

    key: str
    meaning: str
    values: list[str]


def differing_settings(recipes: Sequence[Recipe]) -> list[Setting]:
    """The keys in which runs differ, but for the folder of the run."""
    return _settings([flatten(recipe.model_dump()) for recipe in recipes])


def chosen_settings(recipe: Recipe) -> list[Setting]:
    """The keys of one recipe that are not at their defaults, with these."""
    return _settings([flatten(one.model_dump()) for one in (recipe, Recipe())])


def _settings(flat: Sequence[dict[str, Any]]) -> list[Setting]:
    keys = dict.fromkeys(key for one in flat for key in one)
    meanings = recipe_keys()
    absent = object()
    return [
        Setting(key, meanings.get(key, ""), [_shown(one.get(key, "–")) for one in flat])
        for key in keys
        if key != "run.dir" and any(one.get(key, absent) != flat[0].get(key, absent) for one in flat[1:])
    ]


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value) or '""'
