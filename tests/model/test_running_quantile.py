"""The running quantile against sorting."""

import pytest
import torch

from model.losses.running_quantile import BINS, RunningQuantile, count_in_bins, quantile_of_bins

WIDTH = 2 / BINS


def counts_of(values: torch.Tensor) -> torch.Tensor:
    return count_in_bins(values, torch.ones_like(values, dtype=torch.bool))


def normal(size: int, mean: float, deviation: float) -> torch.Tensor:
    draws = torch.randn(size, generator=torch.Generator().manual_seed(0))
    return (mean + deviation * draws).clamp(-1, 1)


@pytest.mark.parametrize("quantile", [0.001, 0.5, 0.9, 0.999])
def test_it_is_that_of_the_sorted_values_to_a_bin(quantile: float) -> None:
    values = normal(50_000, 0.2, 0.15)
    found = quantile_of_bins(counts_of(values).float(), quantile)
    assert abs(found - values.quantile(quantile)) <= WIDTH


def test_the_share_above_it_is_what_was_asked_for() -> None:
    values = normal(100_000, 0.0, 0.1)
    found = quantile_of_bins(counts_of(values).float(), 0.999)
    assert 80 <= int((values >= found).sum()) <= 120


def test_every_value_in_range_is_counted_and_no_other() -> None:
    values = torch.tensor([-1.0, -0.9999, 0.0, 0.9999, 1.0, 0.5])
    counts = count_in_bins(values, torch.tensor([True, True, True, True, True, False]))
    assert counts.dtype == torch.int64
    assert counts.sum() == 5
    assert (counts[0], counts[-1]) == (2, 2)


@pytest.mark.parametrize("quantile", [0.3, 0.9, 0.999])
def test_within_a_bin_it_is_interpolated(quantile: float) -> None:
    found = quantile_of_bins(torch.ones(BINS), quantile)  # as many values in every bin
    assert abs(float(found) - (2 * quantile - 1)) < WIDTH / 100


@pytest.mark.parametrize("value", [-1.0, 0.3, 1.0])
def test_of_one_value_it_is_that_value(value: float) -> None:
    found = quantile_of_bins(counts_of(torch.full((9,), value)).float(), 0.9)
    assert abs(found - value) <= WIDTH


def test_before_any_value_it_is_infinite_and_no_values_change_nothing() -> None:
    running = RunningQuantile(0.9, 0.9)
    assert running.value == torch.inf
    running.update(torch.zeros(BINS, dtype=torch.int64))
    assert running.value == torch.inf
    running.update(counts_of(normal(1000, 0.1, 0.1)))
    before = running.histogram.clone()
    running.update(torch.zeros(BINS, dtype=torch.int64))
    assert torch.equal(running.histogram, before)


def test_it_is_right_from_the_first_step_on_and_follows_a_change() -> None:
    running = RunningQuantile(0.99, 0.9)
    running.update(counts_of(normal(10_000, -0.2, 0.05)))
    assert abs(running.value - normal(10_000, -0.2, 0.05).quantile(0.99)) <= WIDTH
    for _ in range(80):
        running.update(counts_of(normal(10_000, 0.3, 0.05)))
    assert abs(running.value - normal(10_000, 0.3, 0.05).quantile(0.99)) <= 2 * WIDTH


def test_a_step_keeps_the_share_of_the_past_that_decay_says() -> None:
    running = RunningQuantile(0.5, 0.9)
    for value in (-0.5, 0.5):
        running.update(counts_of(torch.full((7,), value)))
    mass = running.histogram[running.histogram > 0]
    torch.testing.assert_close(mass, torch.tensor([0.9 * 0.1, 0.1]))


def test_a_resumed_one_goes_on_as_the_other() -> None:
    one, other = RunningQuantile(0.9, 0.9), RunningQuantile(0.9, 0.9)
    one.update(counts_of(normal(1000, 0.1, 0.1)))
    other.load_state_dict(one.state_dict())
    for running in (one, other):
        running.update(counts_of(normal(1000, 0.4, 0.1)))
    assert one.value == other.value
