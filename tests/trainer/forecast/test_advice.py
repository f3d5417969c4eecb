"""What does not fit is made to fit, by settings that were tried."""

import re
from dataclasses import replace

import pytest

from tests.trainer.forecast.recipes import STEPS, whole_recipe
from trainer.config import Recipe
from trainer.forecast.advice import advice
from trainer.forecast.forecast import GB, Forecast, Machine, make_forecast, with_engine

PAIRS = 512


@pytest.fixture(scope="module")
def forecast() -> Forecast:
    return make_forecast(whole_recipe(PAIRS, zero_stage=0), Machine(1, 80.0), samples=PAIRS * STEPS)


def needs(forecast: Forecast, recipe: Recipe) -> float:
    return make_forecast(recipe, forecast.machine, samples=PAIRS * STEPS).memory(0).total / GB


def with_memory(forecast: Forecast, gigabytes: float) -> Forecast:
    return replace(forecast, machine=replace(forecast.machine, gpu_memory=gigabytes))


def test_what_fits_needs_no_advice(forecast: Forecast) -> None:
    assert advice(forecast) == []


def test_the_largest_micro_batch_that_fits(forecast: Forecast) -> None:
    sizes = (512, 256, 128)
    needed = [needs(forecast, with_engine(forecast.recipe, micro_batch_size=size)) for size in sizes]
    assert needed == sorted(needed, reverse=True)
    (line, *_) = advice(with_memory(forecast, (needed[1] + needed[2]) / 2))
    assert line == f"engine.micro_batch_size=128: {needed[2]:.1f} GB"


def test_activations_computed_again(forecast: Forecast) -> None:
    lines = advice(with_memory(forecast, forecast.memory(0).total / GB - 1e-6))
    (line,) = [line for line in lines if "gradient_checkpointing" in line]
    assert re.findall(r"model\.(image|text)\.gradient_checkpointing=true", line) == ["image", "text"]


def test_where_nothing_fits_the_least_that_is_needed_is_told(forecast: Forecast) -> None:
    (line,) = advice(with_memory(forecast, 0.5))
    assert line.startswith("nothing: even model.image.gradient_checkpointing=true")
    assert "engine.micro_batch_size=64 engine.zero_stage=3 engine.offload_optimizer=cpu" in line
    assert line.endswith("take more GPUs, larger ones, or a smaller model or batch")
