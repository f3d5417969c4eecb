"""Runs -> one HTML page: curves, the table of recalls, and a gallery of queries."""

from collections.abc import Callable
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from shards.atomic import replacing
from trainer.errors import RunError
from trainer.evaluate import Evaluation, evaluate
from trainer.logs import EVALUATIONS, METRICS, read_rows
from trainer.recipe import dump_recipe
from trainer.report.curves import curves
from trainer.report.gallery import image_queries, text_queries

QUERIES = 8
"""Queries shown in each direction."""


def check_runs(runs: list[Path]) -> None:
    """Raise `RunError` when a path is no run."""
    for run in runs:
        if not (run / METRICS).is_file():
            raise RunError(f"{run}: no {METRICS} in it; give the folder of a run")


def write_report(
    runs: list[Path],
    data: str | Path,
    out: Path,
    *,
    workers: int = 0,
    on_batch: Callable[[int], None] = lambda _images: None,
) -> list[Evaluation]:
    """Evaluate each run's best checkpoint on the split `data` and write the page; the gallery is the last run's.

    Returns the evaluations. Raises `RunError` when a path is no run.
    """
    check_runs(runs)
    evaluations = [evaluate(run, data, workers=workers, on_batch=on_batch) for run in runs]
    last, names = evaluations[-1], _names([run.resolve() for run in runs])
    environment = Environment(
        loader=PackageLoader("trainer.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("page.html.j2").render(
        title=" and ".join(names),
        split=last.manifest,
        rows=[
            ("chance", "a random ranking", last.chance),
            *((name, f"step {e.checkpoint.step:,}", e.result) for name, e in zip(names, evaluations, strict=True)),
        ],
        curves=curves(
            {
                name: (read_rows(run / METRICS), read_rows(run / EVALUATIONS))
                for name, run in zip(names, runs, strict=True)
            }
        ),
        gallery_run=names[-1],
        text_queries=text_queries(last.manifest, last.embeddings, QUERIES),
        image_queries=image_queries(last.manifest, last.embeddings, QUERIES),
        recipes=[(name, dump_recipe(e.checkpoint.recipe)) for name, e in zip(names, evaluations, strict=True)],
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as stream:
        stream.write(page.encode())
    return evaluations


def _names(runs: list[Path]) -> list[str]:
    """The folders' names, with as many of their parents as it takes to tell the runs apart."""
    deepest = max(len(run.parts) for run in runs)
    for depth in range(1, deepest):
        names = ["/".join(run.parts[-depth:]) for run in runs]
        if len(set(names)) == len(runs):
            return names
    return [str(run) for run in runs]
