"""What would make a recipe fit that does not, each tried out."""

from model.config import TowerConfig
from trainer.config import Recipe
from trainer.forecast.forecast import GB, Forecast, remeasured, with_engine
from trainer.forecast.step import STAGES

MOST_PARTS = 32
"""Micro-batches in a batch that are thought of: with more, GPUs are hardly busy, and each takes time here, too."""


def advice(forecast: Forecast) -> list[str]:
    """Settings, a line each, with which the run needs no more than the GPU has; else the least that it needs.

    Empty where it fits as it is. Cheap changes first: what is computed again, or waited for, comes last.
    """
    if forecast.fits(forecast.stage):
        return []
    lines = []
    stages = [stage for stage in STAGES if stage > forecast.stage and forecast.fits(stage)]
    if stages:
        lines.append(_line(forecast, stages[0], f"engine.zero_stage={stages[0]}"))
    smaller = _largest_that_fits(forecast)
    if smaller:
        settings = f"engine.micro_batch_size={smaller.recipe.engine.micro_batch_size}"
        lines.append(_line(smaller, forecast.stage, settings))
    checkpointing, names = _checkpointing(forecast)
    if names and checkpointing.fits(forecast.stage):
        lines.append(_line(checkpointing, forecast.stage, " ".join(names)))
    if lines:
        return lines
    return _all_together(checkpointing, names)


def _line(forecast: Forecast, stage: int, settings: str) -> str:
    return f"{settings}: {forecast.memory(stage).total / GB:.1f} GB"


def _sizes(recipe: Recipe, share: int) -> list[int]:
    """Smaller micro-batches that a run may have, the largest first."""
    group = recipe.model.norm_group if recipe.model.has_aahr else 1
    now = min(recipe.engine.micro_batch_size or share, share)
    sizes = (size for size in range(now // 2, 0, -1) if share % size == 0 and size % group == 0)
    return [size for size in sizes if share // size <= MOST_PARTS]


def _largest_that_fits(forecast: Forecast) -> Forecast | None:
    """With the largest micro-batch that fits; memory grows with it, so that few are tried."""
    sizes = _sizes(forecast.recipe, forecast.recipe.data.global_batch_size // forecast.machine.gpus)
    found, first, last = None, 0, len(sizes) - 1
    while first <= last:
        middle = (first + last) // 2
        tried = remeasured(forecast, with_engine(forecast.recipe, micro_batch_size=sizes[middle]))
        if tried.fits(forecast.stage):
            found, last = tried, middle - 1
        else:
            first = middle + 1
    return found


def _checkpointing(forecast: Forecast) -> tuple[Forecast, list[str]]:
    """With activations computed again in all towers that are trained, and the settings for it."""
    model = forecast.recipe.model
    towers: dict[str, TowerConfig] = {}
    if model.reads_pixels:
        towers["model.image"] = model.image
    if model.text.towers != "transformer":
        towers["model.text"] = model.text
    transformer = model.text.transformer
    if model.text.towers != "clip":
        towers["model.text.transformer"] = transformer
    names = [
        f"{name}.gradient_checkpointing=true"
        for name, tower in towers.items()
        if tower.freeze != "all" and not tower.gradient_checkpointing
    ]
    if not names:
        return forecast, []
    again = {"gradient_checkpointing": True}
    text = model.text.model_copy(update=again | {"transformer": transformer.model_copy(update=again)})
    changed = model.model_copy(update={"image": model.image.model_copy(update=again), "text": text})
    return remeasured(forecast, forecast.recipe.model_copy(update={"model": changed})), names


def _all_together(forecast: Forecast, names: list[str]) -> list[str]:
    """The least there is, and whether that fits."""
    sizes = _sizes(forecast.recipe, forecast.recipe.data.global_batch_size // forecast.machine.gpus)
    if sizes:
        forecast = remeasured(forecast, with_engine(forecast.recipe, micro_batch_size=sizes[-1]))
        names = [*names, f"engine.micro_batch_size={sizes[-1]}"]
    for settings in (
        {"zero_stage": 3},
        {"zero_stage": 3, "offload_optimizer": "cpu"},
        {"zero_stage": 3, "offload_optimizer": "cpu", "offload_parameters": "cpu"},
    ):
        tried = Forecast(**(vars(forecast) | {"recipe": with_engine(forecast.recipe, **settings)}))
        together = " ".join([*names, *(f"engine.{key}={value}" for key, value in settings.items())])
        if tried.fits(3):
            return [_line(tried, 3, together)]
    return [f"nothing: even {_line(tried, 3, together)}; take more GPUs, larger ones, or a smaller model or batch"]
