from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.keyed_random import below, extended, key_of, mix, mix_int, permutation, uniforms

PARTS = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4)


def test_mix_is_the_published_splitmix64_step() -> None:
    golden, seed = 0x9E3779B97F4A7C15, 1234567
    states = np.array([(seed + step * golden) % 2**64 for step in range(4)], np.uint64)
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert mix(states).tolist() == published


@given(st.integers(0, 2**64 - 1))
def test_one_number_is_mixed_as_in_an_array(value: int) -> None:
    assert mix_int(value) == int(mix(np.array([value], np.uint64))[0])


def test_values_are_pinned_across_library_versions() -> None:
    assert int(key_of(1, 2, 3)) == 9812528628958509896
    assert permutation(key_of(5), 10).tolist() == [3, 5, 2, 4, 6, 0, 9, 8, 7, 1]
    assert uniforms(key_of(5), 3) == [0.42855621241884956, 0.8169358586371128, 0.4133400373509277]


@given(PARTS)
def test_a_key_is_a_pure_function_of_its_parts(parts: list[int]) -> None:
    assert key_of(*parts) == key_of(*parts)


@given(PARTS, PARTS)
def test_other_parts_give_another_key(one: list[int], other: list[int]) -> None:
    assert (key_of(*one) == key_of(*other)) == (one == other)


def test_the_order_of_the_parts_counts() -> None:
    assert len({int(key_of(*parts)) for parts in ((1, 2, 3), (3, 2, 1), (1, 3, 2), (1, 2), (1, 2, 0))}) == 5


@pytest.mark.parametrize("part", [-1, 2**64])
def test_parts_beyond_64_bits_are_refused(part: int) -> None:
    with pytest.raises(OverflowError):
        key_of(3, part)


def test_numpy_integers_are_the_same_parts() -> None:
    assert key_of(np.int64(7), np.uint64(2**63)) == key_of(7, 2**63)


def test_numbers_below_a_bound_are_drawn_evenly() -> None:
    drawn = [below(key_of(1, number), 5) for number in range(5000)]
    counts = np.bincount(drawn, minlength=5)
    assert len(counts) == 5
    assert counts.min() > 900


@given(st.integers(0, 2**64 - 1), st.integers(0, 300))
def test_a_permutation_holds_every_number_once(key: int, count: int) -> None:
    assert sorted(permutation(np.uint64(key), count).tolist()) == list(range(count))


def test_permutations_of_neighbouring_keys_are_unrelated() -> None:
    orders = [permutation(key_of(7, number), 1000) for number in range(20)]
    for one, other in pairwise(orders):
        assert np.mean(one == other) < 0.02
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.15


def test_a_key_can_be_built_in_steps() -> None:
    assert extended(key_of(1, 2), 3, 4) == key_of(1, 2, 3, 4)
    assert extended(key_of(1, 2)) == key_of(1, 2)


def test_uniforms_fill_the_unit_interval_evenly() -> None:
    drawn = np.concatenate([uniforms(key_of(3, number), 4) for number in range(2500)])
    assert drawn.min() >= 0
    assert drawn.max() < 1
    counts, _ = np.histogram(drawn, bins=10, range=(0, 1))
    assert counts.min() > 850
    assert counts.max() < 1150


def test_uniforms_of_one_key_are_a_prefix_of_more_uniforms_of_it() -> None:
    assert uniforms(key_of(9), 8)[:3] == uniforms(key_of(9), 3)
    assert len(set(uniforms(key_of(9), 8))) == 8
