"""Runs -> one HTML page that needs nothing else: no script, no file beside it, no network."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from shards.atomic import replacing
from shards.manifest import Manifest
from trainer.checkpoint import Checkpoint
from trainer.checkpoint_folder import find_checkpoint
from trainer.evaluate import evaluate
from trainer.metrics import Retrieval
from trainer.recipe import dump_recipe
from trainer.report.charts import COLOURS, mirrored_bars
from trainer.report.comparison import (
    Result,
    boards,
    changed_queries,
    chosen_settings,
    differing_settings,
    result_of,
)
from trainer.report.confused import Confused, confused
from trainer.report.contest import contest
from trainer.report.curves import curves
from trainer.report.environment import report_facts, run_facts
from trainer.report.gallery import Gallery, gallery
from trainer.report.pictures import Pictures
from trainer.report.prototypes import Prototypes, describe, has_prototypes
from trainer.report.runs import Run, read_runs
from trainer.report.soft_positives import SoftPositives, is_embedded_again, mines, soft_positives
from trainer.subject import read_split

CARDS = 12
"""Prototypes shown with pictures; the others stand in a table."""


def images_to_embed(runs: list[Path], data: str | Path | None) -> int:
    """How many images `write_report` will embed: 0 without `data`.

    Raises `RunError` or `DataError` where it could not begin.
    """
    read_runs(runs)
    if data is None:
        return 0
    checkpoints = [find_checkpoint(run) for run in runs]
    passes = len(runs) + is_embedded_again(checkpoints[-1])
    return passes * read_split(checkpoints[-1], data).num_samples


def write_report(
    runs: list[Path],
    data: str | Path | None,
    out: Path,
    *,
    workers: int = 0,
    on_batch: Callable[[int], None] = lambda _images: None,
) -> None:
    """Measure each run's best checkpoint on the split `data` and write the page; galleries are of the last run.

    Without `data` the page holds what the runs' logs and recipes tell. Raises `RunError` when a path is no run.
    """
    read = read_runs(runs)
    results: list[Result] = []
    checkpoints: list[Checkpoint | None] = []
    shown: _Shown | None = None
    for run in read if data is not None else []:
        assert data is not None
        result, shown = _measure(run, data, workers, on_batch, in_detail=run is read[-1])
        results.append(result)
        checkpoints.append(find_checkpoint(run.path))
    page = _render(read, results, checkpoints or [None] * len(read), shown)
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as stream:
        stream.write(page.encode())


@dataclass(frozen=True)
class _Shown:
    """The last run on the split, in detail."""

    manifest: Manifest
    chance: Retrieval
    result: Retrieval
    captions: list[str]
    caption_image: list[int]
    picture: Pictures
    text_queries: Gallery
    image_queries: Gallery
    confused: Confused
    prototypes_begin: int | None
    """The first step of the prototypes' term; None where the run has none."""
    prototypes: Prototypes | None
    """None where that step is still to come."""
    soft: SoftPositives | None
    """None where the run's loss mines none."""


def _measure(
    run: Run, data: str | Path, workers: int, on_batch: Callable[[int], None], in_detail: bool
) -> tuple[Result, _Shown | None]:
    evaluation = evaluate(run.path, data, workers=workers, on_batch=on_batch)
    embeddings = evaluation.embeddings
    images, texts, owner = embeddings.images, embeddings.texts, embeddings.caption_image
    own = owner.new_tensor(range(len(images)))
    i2t, t2i = contest(images, texts, own, owner), contest(texts, images, owner, own)
    result = result_of(run.name, evaluation, i2t, t2i)
    if not in_detail:
        return result, None
    checkpoint, manifest = evaluation.checkpoint, evaluation.manifest
    begin = checkpoint.recipe.loss.prototypes.start_step if has_prototypes(checkpoint.recipe) else None
    soft = None
    if mines(checkpoint.recipe):
        soft = soft_positives(checkpoint, manifest, embeddings, workers=workers, on_batch=on_batch)
    return result, _Shown(
        manifest,
        evaluation.chance,
        evaluation.result,
        embeddings.captions,
        owner.tolist(),
        Pictures(manifest, embeddings),
        gallery(texts, images, owner, own, t2i),
        gallery(images, texts, own, owner, i2t),
        confused(i2t, owner.tolist()),
        begin,
        describe(checkpoint, embeddings) if begin is not None and checkpoint.step > begin else None,
        soft,
    )


def _render(
    runs: Sequence[Run], results: list[Result], checkpoints: Sequence[Checkpoint | None], shown: _Shown | None
) -> str:
    environment = Environment(
        loader=PackageLoader("trainer.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    bank = shown.prototypes if shown else None
    values: dict[str, Any] = {
        "title": " and ".join(filter(None, [", ".join(run.name for run in runs[:-1]), runs[-1].name])),
        "runs": runs,
        "results": results,
        "boards": boards(results) if results else [],
        "changed": changed_queries(results),
        "curves": curves(runs),
        "colours": COLOURS,
        "shown": shown,
        "bank": bank,
        "cards": CARDS,
        "usage": bank
        and mirrored_bars(
            f"share of the images (up) and captions (down) of each of {len(bank.prototypes)} prototypes",
            bank.image_shares,
            bank.caption_shares,
        ),
        "settings": differing_settings([run.recipe for run in runs])
        if len(runs) > 1
        else chosen_settings(runs[0].recipe),
        "recipes": [(run.name, dump_recipe(run.recipe)) for run in runs],
        "infinity": math.inf,
        "facts_of_runs": [run_facts(run, one) for run, one in zip(runs, checkpoints, strict=True)],
        "made": report_facts(),
    }
    return environment.get_template("page.html.j2").render(values)
