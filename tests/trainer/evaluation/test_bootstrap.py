"""Intervals against the spread that theory gives, and against whole images redrawn."""

import numpy as np
import pytest

from trainer.evaluation.bootstrap import intervals


def test_the_interval_of_a_share_is_that_of_the_normal_law() -> None:
    hits = 100.0 * (np.arange(2000) % 5 == 0)
    (ends,), total = intervals([(np.arange(2000), hits[:, None])])
    spread = 1.96 * 100 * (0.2 * 0.8 / 2000) ** 0.5
    assert ends[0] == pytest.approx([20 - spread, 20 + spread], abs=0.2 * spread)
    assert total == pytest.approx(ends[0])


def test_the_captions_of_an_image_are_drawn_together() -> None:
    hits = 100.0 * (np.arange(400) % 2)
    five = np.repeat(hits, 5)[:, None]
    (alone,), _ = intervals([(np.arange(400), hits[:, None])])
    (together,), _ = intervals([(np.repeat(np.arange(400), 5), five)])
    (apart,), _ = intervals([(np.arange(2000), five)])
    assert together == pytest.approx(alone)
    assert np.ptp(apart) < 0.6 * np.ptp(together)


def test_the_same_images_are_drawn_for_both_directions() -> None:
    hits = 100.0 * (np.arange(300) % 3 == 0)[:, None]
    (one, other), total = intervals([(np.arange(300), hits), (np.arange(300), 100 - hits)])
    assert total == pytest.approx([100, 100])  # what one gains the other loses, image by image
    assert np.ptp(one) > 5
    assert one[0, 0] == pytest.approx(100 - other[0, 1])


def test_many_images_are_drawn_in_parts_and_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.random.default_rng(3).random((50, 2))
    whole = intervals([(np.arange(50), scores)])
    monkeypatch.setattr("trainer.evaluation.bootstrap.DRAWS", 120)
    parts = intervals([(np.arange(50), scores)])
    assert np.array_equal(whole[0][0], parts[0][0])


def test_a_direction_with_few_queries_has_an_interval() -> None:
    ends, total = intervals([(np.arange(30), np.full((30, 1), 50.0)), (np.array([7]), np.array([[100.0]]))])
    assert ends[1].tolist() == [[100.0, 100.0]]
    assert total.tolist() == [150.0, 150.0]
