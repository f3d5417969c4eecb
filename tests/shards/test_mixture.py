import hashlib
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import DataError
from shards.mixture import BLOCK, MixtureOrder, dataset_seed, epoch_counts, sampling_counts
from shards.order import LANES, batch_positions, epoch_order

SIZES = st.lists(st.lists(st.integers(0, 400), min_size=1, max_size=6).filter(any), min_size=1, max_size=5)
COUNTS = st.lists(st.integers(1, 3000), min_size=5, max_size=5)
"""Often more than a block in all."""
SEED = st.integers(0, 2**32)
EPOCH = st.integers(0, 50)
WEIGHT = st.floats(0.05, 20)
PINNED_SHA256 = "5bbafc98948f91709797d4368511f1ec4ba49a1f9b5576f829fdd16f7470199d"


def mixture_of(sizes: list[list[int]], counts: list[int] | tuple[int, ...], seed: int = 0) -> MixtureOrder:
    return MixtureOrder([np.array(size, np.int64) for size in sizes], tuple(counts[: len(sizes)]), seed)


def everything(mixture: MixtureOrder, epoch: int) -> list[tuple[int, int, int, int]]:
    """(data set, own epoch, shard, row) at every position of one epoch of the mixture."""
    parts = mixture.locate(epoch, np.arange(mixture.num_samples, dtype=np.int64))
    return list(zip(*(part.tolist() for part in parts), strict=True))


@settings(max_examples=60, deadline=None)
@given(SIZES, COUNTS, SEED, EPOCH)
def test_every_data_set_gives_its_count_to_every_epoch(
    sizes: list[list[int]], counts: list[int], seed: int, epoch: int
) -> None:
    mixture = mixture_of(sizes, counts, seed)
    dataset = mixture.locate(epoch, np.arange(mixture.num_samples, dtype=np.int64)).dataset
    assert np.bincount(dataset).tolist() == counts[: len(sizes)]


@settings(max_examples=40, deadline=None)
@given(SIZES, st.lists(st.integers(1, 400), min_size=5, max_size=5), SEED)
def test_each_data_set_comes_in_its_own_order_epoch_after_epoch(
    sizes: list[list[int]], counts: list[int], seed: int
) -> None:
    """Whatever its share: each of its epochs is whole, in the order it would have alone, before the next."""
    mixture = mixture_of(sizes, counts, seed)
    stream = [where for epoch in range(3) for where in everything(mixture, epoch)]
    for dataset, size in enumerate(sizes):
        own = [where[1:] for where in stream if where[0] == dataset]
        expected: list[tuple[int, int, int]] = []
        for own_epoch in range(-(-len(own) // sum(size))):
            order = epoch_order(np.array(size, np.int64), dataset_seed(seed, dataset), own_epoch)
            shard, row = order.locate(np.arange(sum(size), dtype=np.int64))
            expected += [(own_epoch, *place) for place in zip(shard.tolist(), row.tolist(), strict=True)]
        assert own == expected[: len(own)]


def test_over_its_own_epoch_every_sample_comes_exactly_once() -> None:
    mixture = mixture_of([[30, 0, 21], [500], [3, 4]], [17, 130, 33], seed=4)
    stream = [where for epoch in range(12) for where in everything(mixture, epoch)]
    assert len(set(stream)) == len(stream)
    for dataset, samples in enumerate([51, 500, 7]):
        own = [where for where in stream if where[0] == dataset]
        whole = len(own) // samples
        assert whole >= 3
        for own_epoch in range(whole):
            assert sum(where[1] == own_epoch for where in own) == samples


@pytest.mark.parametrize("sizes", [[1000] * 600 + [7, 0, 333], [3], [500, 2]])
@pytest.mark.parametrize("epoch", [0, 3])
def test_one_data_set_alone_keeps_its_order(sizes: list[int], epoch: int) -> None:
    samples = np.array(sizes, np.int64)
    mixture = MixtureOrder([samples], epoch_counts([sum(sizes)], [1]), seed=11)
    positions = np.random.default_rng(0).integers(0, sum(sizes), 20_000)
    found = mixture.locate(epoch, positions)
    shard, row = epoch_order(samples, 11, epoch).locate(positions)
    assert np.array_equal(found.shard, shard)
    assert np.array_equal(found.row, row)
    assert set(found.epoch.tolist()) == {epoch}
    batch = mixture.batch_positions(epoch, 0, min(4096, sum(sizes)))
    assert np.array_equal(batch, batch_positions(0, min(4096, sum(sizes))))


@settings(max_examples=40, deadline=None)
@given(SIZES, COUNTS, SEED, EPOCH, st.data())
def test_a_part_is_located_as_within_the_whole(
    sizes: list[list[int]], counts: list[int], seed: int, epoch: int, data: st.DataObject
) -> None:
    mixture = mixture_of(sizes, counts, seed)
    whole = everything(mixture, epoch)
    positions = data.draw(st.lists(st.integers(0, mixture.num_samples - 1), max_size=30))
    again = mixture_of(sizes, counts, seed).locate(epoch, np.array(positions, np.int64))
    found = list(zip(*(part.tolist() for part in again), strict=True))
    assert found == [whole[position] for position in positions]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 20_000), min_size=1, max_size=30), SEED)
def test_the_proportions_hold_at_every_block(counts: list[int], seed: int) -> None:
    mixture = mixture_of([[20_000]] * len(counts), counts, seed)
    total, largest = sum(counts), counts.index(max(counts))
    dataset = mixture.locate(0, np.arange(total, dtype=np.int64)).dataset
    for end in range(BLOCK, total - BLOCK, BLOCK):
        so_far = np.bincount(dataset[:end], minlength=len(counts))
        for number, count in enumerate(counts):
            error = abs(int(so_far[number]) - end * count / total)
            assert error < (len(counts) if number == largest else 1)


@pytest.mark.parametrize("total", [BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK - 1, 3 * BLOCK + 1])
def test_equal_shares_and_odd_ends_leave_no_data_set_in_debt(total: int) -> None:
    for datasets in (3, 65, 200):
        counts = sampling_counts([10_000] * datasets, [1] * datasets, total)
        dataset = mixture_of([[10_000]] * datasets, counts).locate(0, np.arange(total, dtype=np.int64)).dataset
        assert tuple(np.bincount(dataset).tolist()) == counts


def test_data_sets_alternate_within_a_block() -> None:
    dataset = mixture_of([[20_000]] * 2, [20_000, 20_000]).locate(0, np.arange(40_000, dtype=np.int64)).dataset
    assert 0.45 < np.mean(np.diff(dataset) != 0) < 0.55


def test_ten_billion_positions_do_not_overflow() -> None:
    counts = (6_000_000_000, 3_999_999_999, 1)
    samples = (1000, 1100, 1200)
    mixture = mixture_of([[size] for size in samples], counts)
    ends = np.concatenate([np.arange(5000), np.arange(mixture.num_samples - 5000, mixture.num_samples)])
    found = mixture.locate(7, ends)
    assert abs(np.mean(found.dataset == 0) - 0.6) < 0.01
    # what comes last in epoch 7 is directly followed by what comes first in epoch 8
    after = mixture.locate(8, np.arange(5000, dtype=np.int64))
    for dataset in (0, 1):
        assert found.epoch[found.dataset == dataset][-1] == (8 * counts[dataset] - 1) // samples[dataset]
        assert after.epoch[after.dataset == dataset][0] == 8 * counts[dataset] // samples[dataset]


def test_equal_data_sets_are_shuffled_differently() -> None:
    mixture = mixture_of([[1000], [1000]], [1000, 1000])
    found = mixture.locate(0, np.arange(2000, dtype=np.int64))
    rows = [found.row[found.dataset == dataset] for dataset in (0, 1)]
    assert np.mean(rows[0] == rows[1]) < 0.02


def test_epochs_interleave_differently() -> None:
    mixture = mixture_of([[1000], [1000]], [1000, 1000])
    one, other = (mixture.locate(epoch, np.arange(2000, dtype=np.int64)).dataset for epoch in (0, 1))
    assert 0.4 < np.mean(one == other) < 0.6


def test_a_rank_draws_on_the_same_few_lanes_of_every_data_set() -> None:
    mixture = mixture_of([[30_000], [20_000], [9_000]], [30_000, 20_000, 9_000])
    size, world_size = 32 * LANES, 8
    for start in (0, size, 7 * size):
        batch = mixture.batch_positions(0, start, size)
        assert sorted(batch.tolist()) == list(range(start, start + size))
        for part in np.split(batch, world_size):
            dataset, _own_epoch, own_position = mixture._own(0, part)
            assert set(dataset.tolist()) == {0, 1, 2}
            # an eighth of the 64 lanes, and those at the ends, as the data sets' parts are not multiples of 64
            assert len(set((own_position % LANES).tolist())) <= LANES // world_size + 2


def test_the_runs_of_positions_hold_their_samples() -> None:
    mixture = mixture_of([[3000] * 20, [7] * 9, [9000]], [9000, 200, 4000], seed=2)
    positions = np.arange(500, 900, dtype=np.int64)
    runs = [
        (dataset, *run)
        for dataset, _epoch, found in mixture.runs(3, positions)
        for run in zip(found.shard.tolist(), found.first_row.tolist(), found.last_row.tolist(), strict=True)
    ]
    found = mixture.locate(3, positions)
    for dataset, shard, row in zip(found.dataset, found.shard, found.row, strict=True):
        assert any((dataset, shard) == run[:2] and run[2] <= row < run[3] for run in runs)
    for run in runs:
        of_run = (found.dataset == run[0]) & (found.shard == run[1]) & (found.row >= run[2]) & (found.row < run[3])
        assert of_run.any(), "no run is named that is not needed"


def test_a_mixture_travels_to_another_process() -> None:
    mixture = mixture_of([[30, 4], [50]], [34, 50], seed=3)
    before = everything(mixture, 2)
    assert everything(pickle.loads(pickle.dumps(mixture)), 2) == before


def test_the_order_of_a_mixture_is_pinned() -> None:
    found = everything(mixture_of([[1000] * 8, [50, 60], [3]], [8000, 330, 1000], seed=11), 2)
    assert hashlib.sha256(np.array(found, "<i8").tobytes()).hexdigest() == PINNED_SHA256


@given(st.lists(st.tuples(st.integers(1000, 10**10), WEIGHT), min_size=1, max_size=8))
def test_repeats_multiply_a_data_sets_samples(data_sets: list[tuple[int, float]]) -> None:
    samples, weights = zip(*data_sets, strict=True)
    for count, number, weight in zip(epoch_counts(samples, weights), samples, weights, strict=True):
        assert abs(count - number * weight) <= 0.5 + 1e-4


def test_repeats_of_one_are_the_concatenation() -> None:
    assert epoch_counts([10**10 + 1, 7, 123], [1, 1.0, 1]) == (10**10 + 1, 7, 123)
    assert epoch_counts([7, 10], [3, 0.5]) == (21, 5)


@given(st.lists(WEIGHT, min_size=1, max_size=8), st.integers(10_000, 10**10))
def test_shares_add_up_and_are_within_one_of_exact(weights: list[float], total: int) -> None:
    counts = sampling_counts([1] * len(weights), weights, total)
    assert sum(counts) == total
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count - total * weight / sum(weights)) < 1 + 1e-3


def test_shares_are_of_all_samples_and_only_their_ratios_count() -> None:
    assert sampling_counts([700, 300], [0.5, 0.5]) == sampling_counts([700, 300], [3, 3]) == (500, 500)
    assert sampling_counts([5, 5], [2, 1]) == (7, 3)
    assert sampling_counts([90, 10, 10], [0.7, 0.2, 0.1], 10) == (7, 2, 1)


@pytest.mark.parametrize("counts_of", [epoch_counts, sampling_counts])
@pytest.mark.parametrize(
    ("weights", "complaint"),
    [
        ([1, 0], "weight of data set 2 is 0;"),
        ([-1, 1], "weight of data set 1 is -1;"),
        ([1, float("nan")], "weight of data set 2 is nan;"),
        ([1, float("inf")], "weight of data set 2 is inf;"),
        ([1e-9, 1], "weight of data set 1 gives it no sample"),
        ([1], "2 data sets, but 1 weights"),
    ],
)
def test_weights_that_make_no_sense_are_refused(counts_of, weights: list[float], complaint: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match=complaint):
        counts_of([100, 100], weights)
