"""Draws on the device against the same hash in Python's integers."""

import pytest
import torch

from model.losses.keyed_draw import draw, keys_of, mix
from shards.keyed_random import key_of, mix_int


def signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


@pytest.mark.parametrize("value", [0, 1, 2**31, 2**62 + 7, 2**63 - 1, 2**63, 2**64 - 1])
def test_hash_is_splitmix64(value: int) -> None:
    assert mix(torch.tensor([signed(value)])).tolist() == [signed(mix_int(value))]


def test_keys_are_those_of_their_parts() -> None:
    keys = keys_of(torch.tensor([0, 1, 31]), 7, 2**40, 1)
    assert keys.tolist() == [signed(int(key_of(7, 2**40, 1, position))) for position in (0, 1, 31)]
    assert torch.equal(keys, keys_of(torch.tensor([0, 1, 31]), 7, torch.tensor(2**40), 1))


def test_the_slot_that_hashes_highest_is_drawn_whatever_their_order() -> None:
    keys, slots = keys_of(torch.arange(40), 3), torch.arange(100, 109).expand(40, 9)
    drawn, found = draw(keys, slots, torch.ones(40, 9, dtype=torch.bool))
    expected = [
        max(range(100, 109), key=lambda slot: signed(mix_int(int(key) % 2**64 ^ mix_int(slot)))) for key in keys
    ]
    assert drawn.tolist() == expected
    assert found.all()
    assert torch.equal(draw(keys, slots.flip(1), torch.ones(40, 9, dtype=torch.bool))[0], drawn)


def test_what_is_not_possible_is_never_drawn() -> None:
    possible = torch.zeros(300, 6, dtype=torch.bool)
    possible[:200, [1, 4]] = True
    drawn, found = draw(keys_of(torch.arange(300), 3), torch.arange(6).expand(300, 6), possible)
    assert set(drawn[:200].tolist()) == {1, 4}
    assert found.tolist() == [True] * 200 + [False] * 100


def test_slots_are_equally_likely() -> None:
    drawn, _ = draw(
        keys_of(torch.arange(30_000), 1, 2),
        torch.arange(10).expand(30_000, 10),
        torch.tensor(True).expand(30_000, 10),
    )
    share = torch.bincount(drawn) / 30_000
    assert (share - 0.1).abs().max() < 0.009  # five standard deviations
