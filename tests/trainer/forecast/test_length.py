"""Steps and hours by hand."""

import pytest

from trainer.config import Recipe
from trainer.errors import RunError
from trainer.forecast.length import count_steps, length, peak_of


def recipe(**data: object) -> Recipe:
    return Recipe.model_validate({"data": {"global_batch_size": 128, **data}, "schedule": {"epochs": 2.5}})


def test_steps_are_those_of_the_loader() -> None:
    assert count_steps(recipe(), 1000) == (7, 18)
    assert count_steps(recipe(last_batch="pad"), 1000) == (8, 20)
    with pytest.raises(RunError, match=r"data.global_batch_size=128: more than the 127 samples"):
        count_steps(recipe(), 127)


def test_hours() -> None:
    # 200 TFLOP a step at half of 100 TFLOP/s are 4 s
    found = length(recipe(), 1000, 4, 200e12, 150e12, 100.0, 0.5)
    assert found.step_seconds == pytest.approx(4)
    assert found.samples_per_second == pytest.approx(128 / 4)
    assert found.hours == pytest.approx(18 * 4 / 3600)
    assert found.gpu_hours == pytest.approx(4 * 18 * 4 / 3600)
    assert found.useful_share == pytest.approx(0.75)


def test_without_a_gpu_there_are_steps_but_no_hours() -> None:
    found = length(recipe(), 1000, 4, 200e12, 150e12, None, 0.5)
    assert found.total_steps == 18
    assert found.hours is found.gpu_hours is found.step_seconds is found.samples_per_second is None


def test_the_speed_of_a_gpu_is_that_of_the_precision() -> None:
    assert peak_of("H100", "bfloat16") == peak_of("H100", "float16") == 989
    assert peak_of("NVIDIA A100-SXM4-80GB", "float32") == 19.5
    with pytest.raises(RunError, match=r"--gpu H1000: its speed is not known here; known are B200"):
        peak_of("H1000", "bfloat16")
    with pytest.raises(RunError, match=r"--gpu V100: its speed in bfloat16 is not known here; set engine"):
        peak_of("V100", "bfloat16")
