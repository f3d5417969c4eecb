"""Spans of moments, as ranks share them out. `test_command` compares with a real checkpoint."""

import pytest

from tests.trainer.forecast.recipes import STEPS, whole_recipe
from trainer.config import Recipe
from trainer.forecast.step import measure_step


def test_moments_are_divided_and_weights_are_not() -> None:
    found = {world: measure_step(whole_recipe(16), world, STEPS, STEPS) for world in (1, 4)}
    one, four = (found[world].checkpoints for world in (1, 4))
    numbers = found[1].counts.trained
    assert one[2].weights == four[2].weights == four[3].weights
    for size in (one[0], one[3], four[0], four[3]):
        assert size.optimizer == pytest.approx(8 * numbers, rel=0.05)
        assert size.optimizer > 8 * numbers
    assert four[3].optimizer > four[2].optimizer > one[2].optimizer, "more names of spans"


def test_a_queue_in_parts_is_saved_whole() -> None:
    whole = whole_recipe(16)
    queue = whole.loss.queue.model_copy(update={"sharded": True})
    parts: Recipe = whole.model_copy(update={"loss": whole.loss.model_copy(update={"queue": queue})})
    held = [measure_step(recipe, 4, STEPS, STEPS) for recipe in (whole, parts)]
    assert held[0].checkpoints[2].weights == held[1].checkpoints[2].weights
    assert held[1].counts.queue_rows == held[0].counts.queue_rows / 4
