"""Divergence of a rank: found from one bit, and named."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer import sentinel
from trainer.sentinel import diverged, hash_of

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int32, torch.uint8]
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@given(dtype=st.sampled_from(DTYPES), size=st.integers(1, 40), data=st.data())
def test_every_single_bit_counts(dtype: torch.dtype, size: int, data: st.DataObject) -> None:
    tensor = (torch.arange(size * 3).reshape(size, 3) * 37).to(dtype)
    before = hash_of(tensor)
    assert hash_of(tensor.clone()) == before
    bits = tensor.view(-1).view(INTEGERS[tensor.element_size()])
    place = data.draw(st.integers(0, len(bits) - 1))
    bit = data.draw(st.integers(0, 8 * tensor.element_size() - 2))  # the sign is flipped below
    bits[place] ^= 1 << bit
    assert hash_of(tensor) != before
    if dtype.is_floating_point:
        bits[place] ^= 1 << bit
        tensor.view(-1)[place].neg_()
        assert hash_of(tensor) != before


def test_places_count_within_and_across_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentinel, "_CHUNK", 4)
    tensor = torch.arange(11)
    hashes = [hash_of(tensor)]
    for one, other in ((0, 1), (0, 4), (3, 10)):
        swapped = tensor.clone()
        swapped[[one, other]] = swapped[[other, one]]
        hashes.append(hash_of(swapped))
    assert len({int(value) for value in hashes}) == 4


def test_values_that_compare_equal_but_are_not_the_same_bits_differ() -> None:
    assert hash_of(torch.tensor([0.0])) != hash_of(torch.tensor([-0.0]))
    nan = torch.tensor([float("nan")])
    assert hash_of(nan) == hash_of(nan.clone())


@pytest.mark.parametrize(
    ("hashes", "expected"),
    [
        ([[1, 2], [1, 2], [1, 2]], None),
        ([[9, 2], [1, 2], [1, 2]], (0, [0])),
        ([[1, 2], [1, 2], [8, 9]], (2, [0, 1])),
        ([[1, 2], [1, 3]], (1, [1])),
        ([[1], [2], [2], [1]], (1, [0])),
        ([[1], [2], [3]], (1, [0])),
    ],
    ids=["all alike", "rank 0 against two", "two things", "two ranks", "a tie", "all differ"],
)
def test_the_majority_is_right_and_rank_0_in_a_tie(
    hashes: list[list[int]], expected: tuple[int, list[int]] | None
) -> None:
    assert diverged(hashes) == expected
