"""Noise that depends on the pair alone: its bits, its distribution, and what it does not depend on."""

import math

import numpy as np
import pytest
import torch

from model.losses.keyed_noise import PairNoise, mix

EVERYTHING = slice(None)
PINNED = [[1786656044, -96335040], [-49564175, 1539302989], [-1151351293, 415120555]]


def lowbias32(x: int) -> int:
    x ^= x >> 16
    x = x * 0x7FEB352D % 2**32
    x ^= x >> 15
    x = x * 0x846CA68B % 2**32
    return x ^ x >> 16


def test_mix_is_the_published_hash_in_plain_integers() -> None:
    values = torch.tensor([0, 1, 2, 0x7FFFFFFF, -1, -(2**31), 123456789, -987654321], dtype=torch.int32)
    given = values.clone()
    expected = [lowbias32(value % 2**32) for value in values.tolist()]
    assert [value % 2**32 for value in mix(values).tolist()] == expected
    assert torch.equal(values, given)


def test_bits_are_pinned() -> None:
    """A run resumed after an upgrade must draw what it would have drawn."""
    noise = PairNoise(torch.tensor([0, 3, 70_000]), 2, seed=2**40 + 1, step=7, stream=1)
    assert noise.bits(EVERYTHING, EVERYTHING).tolist() == PINNED


def test_a_pairs_noise_depends_on_its_positions_alone() -> None:
    whole = PairNoise(torch.arange(12), 20, seed=3, step=5).bits(EVERYTHING, EVERYTHING)
    second_rank = PairNoise(torch.arange(6, 12), 20, seed=3, step=5)
    assert torch.equal(second_rank.bits(EVERYTHING, EVERYTHING), whole[6:])
    assert torch.equal(second_rank.bits(slice(2, 4), slice(7, 20)), whole[8:10, 7:])


@pytest.mark.parametrize("other", [{"seed": 4}, {"seed": 3 + 2**32}, {"step": 6}, {"stream": 1}])
def test_another_seed_step_or_stream_gives_other_noise(other: dict[str, int]) -> None:
    key = {"seed": 3, "step": 5, "stream": 0}
    first, second = (
        PairNoise(torch.arange(64), 64, **chosen).bits(EVERYTHING, EVERYTHING) for chosen in (key, key | other)
    )
    assert (first == second).sum() < 3


def test_noise_is_exponential_and_uncorrelated_over_rows_columns_and_steps() -> None:
    noise = [
        PairNoise(torch.arange(400), 500, seed=1, step=step)
        .log_exponential(EVERYTHING, EVERYTHING, torch.float64)
        .exp()
        .numpy()
        for step in range(2)
    ]
    drawn = np.sort(noise[0].ravel())
    # Kolmogorov and Smirnov's distance from the exponential distribution, below its 0.1% critical value
    places = np.arange(1, drawn.size + 1) / drawn.size
    assert np.abs(places - (1 - np.exp(-drawn))).max() < 1.95 / math.sqrt(drawn.size)
    others = noise[0][1:], noise[0][:, 1:], noise[1]
    ours = noise[0][:-1], noise[0][:, :-1], noise[0]
    for one, other in zip(ours, others, strict=True):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 4 / math.sqrt(one.size)
    assert np.abs(np.corrcoef(noise[0]) - np.eye(400)).max() < 6 / math.sqrt(500)


def test_noise_is_finite_at_both_ends() -> None:
    noise = PairNoise(torch.arange(2), 2, seed=0, step=0)
    ends = torch.tensor([[0, 2**31 - 1], [-1, -(2**31)]], dtype=torch.int32)
    noise.bits = lambda _rows, _columns: ends.clone()  # type: ignore[method-assign]
    for dtype in (torch.float32, torch.float64):
        log_exponential = noise.log_exponential(EVERYTHING, EVERYTHING, dtype)
        assert log_exponential.isfinite().all()
        assert log_exponential[0, 0] < -20
        assert log_exponential[0, 1] > 2
