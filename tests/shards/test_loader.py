"""What the ranks of a run see together, whatever their number, the workers, and the kills in between."""

import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st

import shards.training
from shards.batch import Batch
from shards.errors import DataError
from shards.images import random_resized_crop
from shards.loader import LastBatch, Position, Rank, TrainLoader, steps_per_epoch
from shards.manifest import Manifest
from shards.order import batch_positions, epoch_order
from shards.training import Part, TrainDataset, TrainingSet, Unkeyed
from tests.shards.fakes import SIZES, captions_of, fake_training, tokenize

Row = tuple[int, int, str, bytes, bool]
"""Sample, image id, caption, pixels and validity."""


def joined(parts: list[Batch]) -> list[Row]:
    """The rows of a global batch, from the parts of its ranks in order."""
    rows: list[Row] = []
    for part in parts:
        assert part.images is not None
        assert part.caption_image.tolist() == list(range(len(part)))
        assert torch.equal(part.text, tokenize(part.captions))
        pixels = [image.numpy().tobytes() for image in part.images]
        columns = (part.samples.tolist(), part.image_ids.tolist(), part.captions, pixels, part.valid.tolist())
        rows.extend(zip(*columns, strict=True))
    return rows


def stream(
    dataset: TrainDataset,
    size: int,
    world_size: int,
    start: Position | None = None,
    workers: int = 0,
    last_batch: LastBatch = "drop",
) -> Iterator[tuple[list[Row], Position]]:
    """Each global batch as all ranks together see it, with the state after it, which all ranks agree on."""
    start = start or Position()
    loaders = [
        TrainLoader(
            dataset, size, Rank(rank, world_size), workers, Position(start.epoch, start.position), last_batch
        )
        for rank in range(world_size)
    ]
    for parts in zip(*loaders, strict=True):
        assert {len(part) for part in parts} == {size // world_size}
        states = [loader.state for loader in loaders]
        assert all(state == states[0] for state in states)
        yield joined(list(parts)), Position(states[0].epoch, states[0].position)


@st.composite
def datasets(draw: st.DrawFn) -> TrainDataset:
    """One data set or a mixture of up to three, with any rule for captions, and up to a few broken samples."""
    sizes = draw(st.lists(SIZES, min_size=1, max_size=3))
    weights = draw(st.lists(st.sampled_from([0.5, 1.0, 2.0, 3.3]), min_size=len(sizes), max_size=len(sizes)))
    broken = (
        draw(st.frozensets(st.integers(0, sum(sizes[0]) - 1), max_size=2)) if sum(sizes[0]) > 3 else frozenset()
    )
    settings = {
        "seed": draw(st.integers(0, 9)),
        "captions": draw(st.sampled_from(["one", "first", "all"])),
        "mix": draw(st.sampled_from(["epoch", "sampling"])),
    }
    try:
        return fake_training(*sizes, weights=weights, broken=broken, **settings)
    except DataError as error:
        assert "gives it no sample in an epoch" in str(error)
        reject()


@st.composite
def runs(draw: st.DrawFn) -> tuple[TrainDataset, int, int, int, int, LastBatch]:
    """Data, global batch size, two world sizes that divide it, batches before the kill, the last batch's rule."""
    dataset = draw(datasets().filter(lambda one: one.training_set.num_visits > 0))
    total = dataset.training_set.num_visits
    size = draw(st.integers(1, min(total, 40)))
    divisors = st.sampled_from([world for world in range(1, 9) if size % world == 0])
    killed_after = draw(st.integers(0, min(12, 2 * (total // size) + 1)))
    return dataset, size, draw(divisors), draw(divisors), killed_after, draw(st.sampled_from(["drop", "pad"]))


@settings(max_examples=60, deadline=None)
@given(runs())
def test_a_run_is_the_same_at_any_world_size_and_resumes_anywhere(
    run: tuple[TrainDataset, int, int, int, int, LastBatch],
) -> None:
    dataset, size, world_size, new_world_size, killed_after, rule = run
    whole = list(islice(stream(dataset, size, 1, last_batch=rule), killed_after + 3))
    before = list(islice(stream(dataset, size, world_size, last_batch=rule), killed_after))
    state = before[-1][1] if before else Position()
    after = list(islice(stream(dataset, size, new_world_size, state, last_batch=rule), 3))
    assert before + after == whole


@settings(max_examples=60, deadline=None)
@given(SIZES, st.sampled_from(["drop", "pad"]), st.data())
def test_an_epoch_sees_every_sample_once(sizes: list[int], rule: LastBatch, data: st.DataObject) -> None:
    total = sum(sizes)
    size = data.draw(st.integers(1, total))
    batches = steps_per_epoch(total, size, rule)
    batch_stream = stream(fake_training(sizes), size, 1, last_batch=rule)
    for epoch in range(2):
        rows = []
        for batch, state in islice(batch_stream, batches):
            assert state.epoch == epoch
            rows.extend(batch)
        seen = [sample for sample, *_, valid in rows if valid]
        assert len(seen) == len(set(seen)) == (total if rule == "pad" else total - total % size)
        assert set(seen) <= set(range(total))
        padding = [row for row in rows if not row[-1]]
        assert len(padding) == (-total % size if rule == "pad" else 0)


@settings(max_examples=40, deadline=None)
@given(SIZES, st.integers(1, 8))
def test_with_all_captions_an_epoch_sees_each_of_them_once(sizes: list[int], size: int) -> None:
    dataset = fake_training(sizes, captions="all")
    total = dataset.training_set.num_visits
    assert total == sum(len(captions_of(number)) for number in range(sum(sizes)))
    size = min(size, total)
    batches = islice(stream(dataset, size, 1, last_batch="pad"), steps_per_epoch(total, size, "pad"))
    seen = [(sample, caption) for batch, _ in batches for sample, _, caption, _, valid in batch if valid]
    assert sorted(seen) == sorted((n, caption) for n in range(sum(sizes)) for caption in captions_of(n))


def test_the_captions_of_one_image_are_seen_with_other_crops() -> None:
    dataset = fake_training([40], captions="all")
    rows, _ = next(stream(dataset, dataset.training_set.num_visits, 1))
    assert len({pixels for *_, pixels, _ in rows}) == len(rows)


@settings(max_examples=40, deadline=None)
@given(st.lists(SIZES, min_size=2, max_size=3), st.data())
def test_a_mixture_by_epochs_repeats_each_data_set_by_its_weight(
    sets: list[list[int]], data: st.DataObject
) -> None:
    weights = data.draw(st.lists(st.sampled_from([1.0, 2.0, 3.0]), min_size=len(sets), max_size=len(sets)))
    dataset = fake_training(*sets, weights=weights)
    total = dataset.training_set.num_visits
    rows, _ = next(stream(dataset, total, 1))
    expected = Counter()
    for first, sizes, weight in zip(dataset.training_set.first_sample, sets, weights, strict=True):
        expected.update({first + number: int(weight) for number in range(sum(sizes))})
    assert Counter(sample for sample, *_ in rows) == expected


def test_a_mixture_by_sampling_has_the_shares_asked_for_in_every_batch() -> None:
    dataset = fake_training([500, 700], [90], weights=[0.25, 0.75], mix="sampling")
    for batch, _ in islice(stream(dataset, 256, 2), 20):
        share = np.mean([sample >= 1200 for sample, *_ in batch])
        assert 0.6 < share < 0.9
    everything = [row for batch, _ in islice(stream(dataset, 129, 1), 10) for row in batch]
    assert abs(np.mean([sample >= 1200 for sample, *_ in everything]) - 0.75) < 0.01


def test_what_is_repeated_in_an_epoch_is_seen_with_another_crop() -> None:
    dataset = fake_training([20], [7], weights=[1.0, 4.0])
    rows, _ = next(stream(dataset, 48, 1))
    assert len({(sample, pixels) for sample, _, _, pixels, _ in rows}) == 48


@settings(max_examples=40, deadline=None)
@given(SIZES.filter(lambda sizes: sum(sizes) > 5), st.data())
def test_a_broken_sample_is_replaced_by_the_next_of_the_order_and_reported(
    sizes: list[int], data: st.DataObject
) -> None:
    total = sum(sizes)
    broken = data.draw(st.frozensets(st.integers(0, total - 1), min_size=1, max_size=4))
    size = data.draw(st.integers(1, total))
    sound, damaged = fake_training(sizes), fake_training(sizes, broken=broken)
    shard, row = epoch_order(np.array(sizes), 0, 0).locate(np.arange(total))
    order = (sound.training_set.parts[0].manifest.first_sample[shard] + row).tolist()
    loader = TrainLoader(damaged, size, Rank(), last_batch="pad")
    reported = set()
    for number, batch in enumerate(islice(loader, steps_per_epoch(total, size, "pad"))):
        reported |= {one.sample for one in batch.undecodable}
        held = min(size, total - number * size)
        positions = [*batch_positions(number * size, held).tolist(), *range(size - held)]
        for position, sample in zip(positions, batch.samples.tolist(), strict=True):
            following = (order[(position + step) % total] for step in range(total))
            assert sample == next(one for one in following if one not in broken)
    assert reported == broken


def test_a_data_set_of_nothing_but_broken_samples_ends_the_run() -> None:
    dataset = fake_training([9], broken=frozenset(range(9)))
    with pytest.raises(DataError, match=r"nowhere-0: 9 samples in a row do not decode; the last: .* broken"):
        next(iter(TrainLoader(dataset, 3, Rank())))


def test_the_samples_in_a_row_are_counted_without_those_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards.training, "MOST_REPLACEMENTS", 3)
    # the first of the batch is replaced once; later four in a row of the epoch's order do not decode
    order = epoch_order(np.array([40]), 0, 0).locate(np.arange(40))[1].tolist()
    dataset = fake_training([40], broken=frozenset([order[0], *order[10:14]]))
    with pytest.raises(DataError, match="nowhere-0: 3 samples in a row do not decode"):
        next(iter(TrainLoader(dataset, 20, Rank())))


def test_batches_follow_the_canonical_order() -> None:
    sizes, size, seed = [40, 0, 33, 60], 30, 5
    dataset = fake_training(sizes, seed=seed)
    for number, (batch, _) in enumerate(islice(stream(dataset, size, 2), 8)):
        epoch, place = divmod(number, 133 // size)
        shard, row = epoch_order(np.array(sizes), seed, epoch).locate(batch_positions(place * size, size))
        first_sample = dataset.training_set.parts[0].manifest.first_sample
        assert [sample for sample, *_ in batch] == (first_sample[shard] + row).tolist()


def test_every_row_belongs_to_its_sample() -> None:
    for batch, _ in islice(stream(fake_training([40, 0, 33, 60]), 30, 2), 8):
        for sample, image_id, caption, *_ in batch:
            assert image_id == 1000 + sample
            assert caption in captions_of(sample)


def visits(seed: int, epochs: int, samples: int = 500) -> list[dict[int, tuple[str, bytes]]]:
    """For each epoch the caption and the random key with which each sample was seen."""
    batches = stream(fake_training([samples - 23, 23], seed=seed), samples, 4)
    return [{sample: (text, key) for sample, _, text, key, _ in batch} for batch, _ in islice(batches, epochs)]


def test_captions_and_crops_are_drawn_afresh_in_each_epoch_and_seed() -> None:
    (first, second), (other_seed,) = visits(0, 2), visits(1, 1)
    assert visits(0, 2) == [first, second]
    several = [sample for sample in range(500) if len(captions_of(sample)) == 4]
    for other in (second, other_seed):
        assert all(first[sample][1] != other[sample][1] for sample in range(500))
        same = np.mean([first[sample][0] == other[sample][0] for sample in several])
        assert 0.1 < same < 0.45  # a quarter, by chance


def test_every_caption_of_an_image_has_its_turn() -> None:
    drawn = visits(0, 40, samples=100)
    for sample in range(100):
        assert {epoch[sample][0] for epoch in drawn} == set(captions_of(sample))


def test_the_first_caption_can_be_asked_for() -> None:
    for batch, _ in islice(stream(fake_training([50], captions="first"), 25, 1), 4):
        assert all(caption == f"caption 0 of {sample}" for sample, _, caption, *_ in batch)


def test_a_state_at_the_end_of_an_epoch_goes_on_with_the_next() -> None:
    dataset = fake_training([10])
    ends = next(stream(dataset, 4, 1, Position(2, 8)))
    begins = next(stream(dataset, 4, 1, Position(3, 0)))
    assert ends == begins


def test_the_state_is_saved_and_loaded_as_two_numbers() -> None:
    dataset = fake_training([30, 20])
    loader = TrainLoader(dataset, 8, Rank())
    batches = iter(loader)
    for _ in range(9):
        next(batches)
    assert loader.state_dict() == {"epoch": 1, "position": 24}
    other = TrainLoader(dataset, 8, Rank())
    other.load_state_dict(loader.state_dict())
    assert next(iter(other)).samples.tolist() == next(batches).samples.tolist()


@pytest.mark.parametrize(("size", "world_size"), [(10, 3), (2, 4), (7, 2)])
def test_a_batch_that_does_not_divide_among_the_processes_is_refused(size: int, world_size: int) -> None:
    with pytest.raises(DataError, match=f"{size} does not divide among {world_size} processes"):
        TrainLoader(fake_training([50]), size, Rank(0, world_size))


def test_too_few_samples_for_one_batch_are_refused() -> None:
    with pytest.raises(DataError, match="nowhere-0: 50 samples do not fill one global batch of 51"):
        TrainLoader(fake_training([20, 30]), 51, Rank())
    TrainLoader(fake_training([20, 30]), 50, Rank())


# With files and loader workers


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, make_shards: Callable[..., Manifest]) -> Manifest:
    """Twenty-three samples in shards of 6, 6, 6 and 5."""
    return make_shards(tmp_path_factory.mktemp("loader") / "train", 23, per_shard=6)


def dataset_of(*manifests: Manifest) -> TrainDataset:
    training_set = TrainingSet(tuple(Part(manifest) for manifest in manifests))
    return TrainDataset(training_set, random_resized_crop(16, 0.3), Unkeyed(tokenize), seed=4)


@pytest.mark.parametrize("world_size", [1, 2])
def test_loader_workers_change_nothing(manifest: Manifest, world_size: int) -> None:
    plain = list(islice(stream(dataset_of(manifest), 4, world_size), 12))
    assert list(islice(stream(dataset_of(manifest), 4, world_size, workers=2), 12)) == plain
    assert len({pixels for batch, _ in plain for *_, pixels, _ in batch}) > 40, "crops differ from visit to visit"


def test_what_workers_fetched_ahead_is_not_lost_on_resume(manifest: Manifest) -> None:
    whole = list(islice(stream(dataset_of(manifest), 6, 1), 9))
    before = list(islice(stream(dataset_of(manifest), 6, 2, workers=2), 4))
    after = list(islice(stream(dataset_of(manifest), 6, 3, before[-1][1], workers=2), 5))
    assert before + after == whole


def test_a_mixture_and_more_workers_than_shards(tmp_path: Path, make_shards: Callable[..., Manifest]) -> None:
    dataset = dataset_of(make_shards(tmp_path / "one", 5), make_shards(tmp_path / "two", 4, captions=1))
    assert list(islice(stream(dataset, 2, 2, workers=2), 6)) == list(islice(stream(dataset, 2, 1), 6))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_missing_shard_ends_the_run_in_one_line(
    tmp_path: Path, make_shards: Callable[..., Manifest], workers: int
) -> None:
    manifest = make_shards(tmp_path / "train", 12)
    dataset = dataset_of(manifest)
    path = Path(manifest.shard_location(1))
    path.unlink()
    with pytest.raises(DataError) as raised:
        list(islice(TrainLoader(dataset, 4, Rank(), workers), 3))
    assert str(raised.value) == f"{path}: the shard cannot be read (No such file or directory)"
    assert not multiprocessing.active_children(), "workers end with the error, not when its traceback is collected"


def mistaken(_captions: list[str]) -> torch.Tensor:
    raise RuntimeError("a mistake of the tokenizer")


def killed(_captions: list[str]) -> torch.Tensor:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def with_tokenizer(manifest: Manifest, tokenizer: Callable[[list[str]], torch.Tensor]) -> TrainLoader:
    dataset = TrainDataset(TrainingSet((Part(manifest),)), random_resized_crop(16, 0.3), Unkeyed(tokenizer))
    return TrainLoader(dataset, 4, Rank(), workers=1)


def test_a_mistake_in_a_worker_keeps_its_traceback(manifest: Manifest) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)in mistaken\n.*a mistake of the tokenizer"):
        next(iter(with_tokenizer(manifest, mistaken)))


def test_a_worker_that_is_killed_is_told_in_one_line(manifest: Manifest) -> None:
    with pytest.raises(DataError, match=r"^a loader worker ended unexpectedly \(.*short of memory") as raised:
        next(iter(with_tokenizer(manifest, killed)))
    assert "\n" not in str(raised.value)
