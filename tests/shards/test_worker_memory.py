"""Shared memory that a worker's batches take turns in."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shards import worker_memory
from shards.batch import Batch, stack_images, stack_regions
from shards.errors import DataError
from shards.images import random_resized_crop
from shards.loader import Rank, TrainLoader
from shards.manifest import Manifest
from shards.training import Part, TrainDataset, TrainingSet, Unkeyed
from shards.worker_memory import IN_USE, PREFETCH, Turns

SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=3)
DTYPES = st.sampled_from([torch.uint8, torch.float32, torch.int64])


@given(st.lists(st.tuples(SHAPES, DTYPES), min_size=1, max_size=30))
def test_the_last_batches_stand_whatever_is_asked_for(asked: list[tuple[list[int], torch.dtype]]) -> None:
    turns, given_out = Turns(), []
    for number, (shape, dtype) in enumerate(asked):
        tensor = turns.empty(shape, dtype)
        assert (list(tensor.shape), tensor.dtype, tensor.is_shared()) == (shape, dtype, True)
        given_out.append(tensor.fill_(number))
        for place in range(max(0, number - PREFETCH - IN_USE + 1), number + 1):
            assert bool((given_out[place] == place).all())


def test_memory_is_used_again() -> None:
    turns = Turns()
    addresses = [turns.empty((4, 4), torch.uint8).data_ptr() for _ in range(3 * (PREFETCH + IN_USE))]
    assert len(set(addresses)) == PREFETCH + IN_USE
    assert addresses[: PREFETCH + IN_USE] == addresses[PREFETCH + IN_USE : 2 * (PREFETCH + IN_USE)]


def test_outside_of_a_worker_every_batch_has_memory_of_its_own() -> None:
    pixels = [np.full((2, 2, 3), value, np.uint8) for value in range(9)]
    stacked = [stack_images([one]) for one in pixels]
    for value, batch in enumerate(stacked):
        assert batch is not None
        assert bool((batch == value).all())


def test_what_stood_in_the_memory_before_is_no_part_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_memory, "get_worker_info", object)
    monkeypatch.setattr(worker_memory, "_turns", {"regions": (turns := Turns())})
    for _ in range(PREFETCH + IN_USE):
        turns.empty((2, 3, 4), torch.float32).fill_(7)
    regions, mask = stack_regions([np.ones((1, 4), np.float32), np.ones((3, 4), np.float32)])
    assert regions is not None
    assert mask is not None
    assert regions.is_shared()
    assert regions[..., 0].tolist() == [[1, 0, 0], [1, 1, 1]]
    assert mask.tolist() == [[True, False, False], [True, True, True]]


def test_full_shared_memory_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def share(_tensor: torch.Tensor) -> None:
        raise RuntimeError(
            "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"
        )

    monkeypatch.setattr(torch.Tensor, "share_memory_", share)
    with pytest.raises(DataError, match="6 batches of 12 MB there; enlarge it"):
        Turns().empty((3, 2_000_000), torch.int16)


def length(captions: list[str]) -> torch.Tensor:
    return torch.tensor([[len(caption)] for caption in captions])


def batches(manifest: Manifest, workers: int) -> Iterator[Batch]:
    dataset = TrainDataset(TrainingSet((Part(manifest),)), random_resized_crop(16, 0.5), Unkeyed(length))
    return iter(TrainLoader(dataset, 4, Rank(), workers))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_batch_stays_as_it_is_until_the_second_next(
    tmp_path: Path, make_shards: Callable[..., Manifest], workers: int
) -> None:
    manifest = make_shards(tmp_path / "train", 24)
    alone, made = batches(manifest, 0), batches(manifest, workers)
    before: list[tuple[torch.Tensor, torch.Tensor]] = []
    for _ in range(8 * (PREFETCH + IN_USE)):
        expected, found = next(alone).images, next(made).images
        assert expected is not None
        assert found is not None
        before = [*before[-1:], (expected, found)]
        for one, other in before:
            assert torch.equal(one, other)
