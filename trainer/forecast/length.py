"""Steps and hours of a run."""

from dataclasses import dataclass

from shards.loader import steps_per_epoch
from shards.progress import counted
from trainer.config import Recipe
from trainer.errors import RunError
from trainer.flops import PEAKS, arithmetic_of, peak_tflops

UTILISATION = 0.4
"""Share of a GPU's peak at which its arithmetic is taken to run.

Of all that is really computed, unlike `mfu` in metrics.jsonl. A guess: PaLM reports 0.46 on far larger matrices
(arXiv 2204.02311), and ours was not measured on a GPU. A run's own figures replace it: `itm plan RUN`.
"""


@dataclass(frozen=True)
class Length:
    """How long a run is; times are None where no GPU is named."""

    visits: int
    """Pairs an epoch."""
    steps_per_epoch: int
    total_steps: int
    step_seconds: float | None
    samples_per_second: float | None
    """Over all GPUs."""
    hours: float | None
    gpu_hours: float | None
    useful_share: float
    """Of the arithmetic: a run's `mfu` is this share of the utilisation."""


def count_steps(recipe: Recipe, visits: int) -> tuple[int, int]:
    """Steps an epoch and in all. Raises `RunError` where the data do not fill a batch."""
    batch = recipe.data.global_batch_size
    if batch > visits:
        raise RunError(f"data.global_batch_size={batch}: more than the {counted(visits, 'sample')}; lower it")
    epoch = steps_per_epoch(visits, batch, recipe.data.last_batch)
    return epoch, max(1, round(recipe.schedule.epochs * epoch))


def peak_of(gpu: str, precision: str) -> float:
    """TFLOP/s of a GPU in the recipe's precision. Raises `RunError` for one that is not known."""
    peak = peak_tflops(gpu, arithmetic_of(precision))
    if peak is None:
        if peak_tflops(gpu, "float32") is None:
            raise RunError(f"--gpu {gpu}: its speed is not known here; known are {', '.join(PEAKS)}")
        raise RunError(f"--gpu {gpu}: its speed in {precision} is not known here; set engine.precision=float32")
    return peak


def length(
    recipe: Recipe,
    visits: int,
    gpus: int,
    flops: float,
    useful_flops: float,
    peak: float | None,
    utilisation: float,
) -> Length:
    """Of a run whose processes each do `flops` operations a step, on GPUs of `peak` TFLOP/s."""
    epoch, total = count_steps(recipe, visits)
    seconds = None if peak is None else flops / (peak * 1e12 * utilisation)
    hours = None if seconds is None else total * seconds / 3600
    return Length(
        visits=visits,
        steps_per_epoch=epoch,
        total_steps=total,
        step_seconds=seconds,
        samples_per_second=None if seconds is None else recipe.data.global_batch_size / seconds,
        hours=hours,
        gpu_hours=None if hours is None else hours * gpus,
        useful_share=useful_flops / flops,
    )
