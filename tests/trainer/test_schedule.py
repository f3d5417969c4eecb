import math

import pytest

from trainer.schedule import learning_rate_scale


def test_it_rises_by_equal_steps_to_the_peak() -> None:
    rise = [learning_rate_scale(step, 100, 4, 0.0) for step in range(5)]
    assert rise == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


def test_it_falls_on_half_a_cosine_to_the_final_scale() -> None:
    for step in range(20, 121):
        angle = math.pi * (step - 20) / 100
        assert learning_rate_scale(step, 120, 20, 0.1) == pytest.approx(0.55 + 0.45 * math.cos(angle))
    assert learning_rate_scale(120, 120, 20, 0.1) == pytest.approx(0.1)


def test_it_stays_at_the_final_scale_after_the_end() -> None:
    assert learning_rate_scale(500, 120, 20, 0.1) == pytest.approx(0.1)


@pytest.mark.parametrize(("total", "warmup"), [(100, 0), (100, 10), (100, 100), (10, 50), (1, 0), (1, 1)])
def test_it_never_leaves_the_range_from_zero_to_one_nor_rises_after_the_warmup(total: int, warmup: int) -> None:
    scales = [learning_rate_scale(step, total, warmup, 0.0) for step in range(total)]
    assert all(0 < scale <= 1 for scale in scales)
    assert scales[warmup:] == sorted(scales[warmup:], reverse=True)
    assert scales[0] == (1 / warmup if warmup else 1)


def test_with_a_final_scale_of_one_it_is_constant() -> None:
    assert {learning_rate_scale(step, 50, 0, 1.0) for step in range(60)} == {1.0}


def test_with_drops_it_falls_to_a_tenth_at_each() -> None:
    scales = [learning_rate_scale(step, 40, 2, 0.5, [15, 25]) for step in range(41)]
    assert scales[:2] == [0.5, 1.0]
    assert scales[2:15] == [1.0] * 13
    assert scales[15:25] == pytest.approx([0.1] * 10)
    assert scales[25:] == pytest.approx([0.01] * 16)
