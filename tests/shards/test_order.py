import hashlib
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shards.order
from shards.keyed_random import permutation
from shards.order import LANES, RUN_LENGTH, STAGGER, WINDOW, WINDOWS_KEPT, batch_positions, epoch_order
from shards.reader import INDEXES
from shards.storage.remote import TABLES

SMALL = st.lists(st.integers(0, 40), min_size=1, max_size=12)
"""Single samples are permuted; often fewer samples than lanes, empty shards, one sample."""
LARGE = st.lists(st.integers(0, 4000), min_size=1, max_size=10)
"""Up to 40,000 samples: runs of several samples, cut by the ends of shards."""
SIZES = st.one_of(SMALL, LARGE).filter(lambda sizes: sum(sizes) > 0)
SMALL_ORDERS = [[4, 9, 3, 2, 5, 0, 6, 8, 1, 7], [6, 0, 3, 8, 9, 1, 7, 5, 4, 2]]
LARGE_ORDER_START = [1180276, 731188, 690737, 635719, 523510]
LARGE_ORDER_SHA256 = "a830567e87e31cb695e85bfc4cabd10f03f989fce4db64b0ca80c06e4202ca99"
SEED = st.integers(0, 2**32)
EPOCH = st.integers(0, 1000)


def order_of(sizes: list[int], seed: int = 0, epoch: int = 0) -> np.ndarray:
    """The (num_samples,) samples of an epoch, counted over all shards, in the order of their positions."""
    samples = np.array(sizes, np.int64)
    order = epoch_order(samples, seed, epoch)
    shard, row = order.locate(np.arange(order.num_samples, dtype=np.int64))
    assert (row >= 0).all()
    assert (row < samples[shard]).all()
    return (np.cumsum(samples) - samples)[shard] + row


@settings(max_examples=150, deadline=None)
@given(SIZES, SEED, EPOCH)
def test_an_epoch_holds_every_sample_exactly_once(sizes: list[int], seed: int, epoch: int) -> None:
    assert np.array_equal(np.sort(order_of(sizes, seed, epoch)), np.arange(sum(sizes)))


@pytest.mark.parametrize("sizes", [[1], [0, 1, 0], [3], [0, 0, 2, 5], [LANES - 1], [LANES], [LANES + 1]])
def test_tiny_data_sets_are_covered(sizes: list[int]) -> None:
    assert sorted(order_of(sizes).tolist()) == list(range(sum(sizes)))


def test_lanes_of_several_windows_are_covered() -> None:
    sizes = [1000] * 1200 + [7, 0, 333] + [1000] * 30
    assert sum(sizes) > LANES * WINDOW, "the lanes must be longer than a window for this test"
    assert np.array_equal(np.sort(order_of(sizes, 3, 1)), np.arange(sum(sizes)))


@settings(max_examples=50, deadline=None)
@given(SIZES, SEED, EPOCH, st.data())
def test_a_part_is_located_as_within_the_whole(
    sizes: list[int], seed: int, epoch: int, data: st.DataObject
) -> None:
    whole = order_of(sizes, seed, epoch)
    positions = data.draw(st.lists(st.integers(0, sum(sizes) - 1), max_size=30))
    samples = np.array(sizes, np.int64)
    shard, row = epoch_order(samples, seed, epoch).locate(np.array(positions, np.int64))
    assert ((np.cumsum(samples) - samples)[shard] + row).tolist() == whole[positions].tolist()


def test_another_epoch_or_seed_gives_another_order() -> None:
    sizes = [50, 60, 70]
    orders = [order_of(sizes, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))]
    for number, one in enumerate(orders):
        for other in orders[:number]:
            assert np.mean(one == other) < 0.1


def test_a_small_data_set_is_mixed_sample_by_sample() -> None:
    order = order_of([500, 500])
    assert np.mean(np.abs(np.diff(order)) == 1) < 0.02
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.15


@pytest.mark.parametrize("epoch", [0, 1])
def test_the_order_of_a_small_data_set_is_pinned(epoch: int) -> None:
    assert order_of([3, 0, 5, 2], seed=11, epoch=epoch).tolist() == SMALL_ORDERS[epoch]


def test_the_order_of_a_data_set_with_runs_and_windows_is_pinned() -> None:
    order = order_of([1000] * 1300, seed=11, epoch=2)
    assert order[:5].tolist() == LARGE_ORDER_START
    assert hashlib.sha256(order.astype("<i8").tobytes()).hexdigest() == LARGE_ORDER_SHA256


def test_a_large_data_set_is_read_in_long_sequential_runs() -> None:
    """What a lane reads at a time, one window, is a few dozen stretches of consecutive samples."""
    samples = np.full(3000, 1000, np.int64)
    order = epoch_order(samples, 5, 0)
    for lane in (0, 17, LANES - 1):
        window = np.arange(WINDOW - STAGGER[lane], 2 * WINDOW - STAGGER[lane])
        shard, row = order.locate(lane + LANES * window)
        read = np.sort(shard * 1000 + row)
        stretches = 1 + int((np.diff(read) != 1).sum())
        # a shard of 1000 samples holds a run of 512 and one of 488; both ends of the window may cut one
        assert stretches <= WINDOW / 488 + 2
        assert len(set(shard.tolist())) > stretches / 2, "the stretches come from all over the data set"


def test_a_large_data_set_is_mixed_within_a_window() -> None:
    samples = np.full(3000, 1000, np.int64)
    shard, row = epoch_order(samples, 5, 0).locate(LANES * np.arange(WINDOW, dtype=np.int64))
    assert np.mean(np.abs(np.diff(shard * 1000 + row)) == 1) < 0.01
    assert len(set(shard[: RUN_LENGTH // 4].tolist())) > 10


@settings(max_examples=50, deadline=None)
@given(SIZES, SEED, EPOCH, st.data())
def test_the_runs_of_positions_are_those_that_hold_their_samples(
    sizes: list[int], seed: int, epoch: int, data: st.DataObject
) -> None:
    positions = np.array(data.draw(st.lists(st.integers(0, sum(sizes) - 1), max_size=30)), np.int64)
    order = epoch_order(np.array(sizes, np.int64), seed, epoch)
    runs = order.runs(positions)
    table = list(zip(runs.shard.tolist(), runs.first_row.tolist(), runs.last_row.tolist(), strict=True))
    needed = []
    for shard, row in zip(*(part.tolist() for part in order.locate(positions)), strict=True):
        holding = [run for run in table if run[0] == shard and run[1] <= row < run[2]]
        assert len(holding) == 1
        needed += [holding[0]] if holding[0] not in needed else []
    assert table == needed, "each run once, in order of first need"


def test_the_runs_of_an_epoch_are_its_samples_each_once() -> None:
    sizes = [1000] * 1200 + [7, 0, 333]
    order = epoch_order(np.array(sizes, np.int64), 3, 1)
    runs = order.runs(np.arange(sum(sizes), dtype=np.int64))
    assert (runs.last_row - runs.first_row).max() <= RUN_LENGTH
    by_shard = np.lexsort((runs.first_row, runs.shard))
    for shard, size in enumerate(sizes):
        own = by_shard[runs.shard[by_shard] == shard]
        assert [0, *runs.last_row[own].tolist()] == [*runs.first_row[own].tolist(), size]


@pytest.mark.parametrize("world_size", [1, 4, 8])
def test_new_runs_come_into_use_evenly(world_size: int) -> None:
    """No burst of reads once the epoch is under way, neither for all nor for the lanes of one rank."""
    order = epoch_order(np.full(6000, 1000, np.int64), 5, 0)
    lanes = np.arange(LANES // world_size)
    period = WINDOW // len(lanes)  # in which one lane turns over
    seen: set[tuple[int, int]] = set()
    fresh = []
    for part in range(3 * len(lanes)):
        places = np.arange(part * period, (part + 1) * period)
        runs = order.runs((LANES * places[:, None] + lanes).ravel())
        found = set(zip(runs.shard.tolist(), runs.first_row.tolist(), strict=True))
        fresh.append(len(found - seen))
        seen |= found
    # a window holds about 33 runs of 500, and both of its ends may cut one
    assert max(fresh[len(lanes) :]) <= WINDOW / 488 + 2
    assert min(fresh[len(lanes) :]) >= WINDOW / 512 - 2


@given(st.integers(0, 10_000), st.integers(1, 500))
def test_a_batch_holds_its_positions_sorted_by_lane(start: int, count: int) -> None:
    positions = batch_positions(start, count)
    assert sorted(positions.tolist()) == list(range(start, start + count))
    by_lane = [(position % LANES, position) for position in positions.tolist()]
    assert by_lane == sorted(by_lane)


def test_a_rank_draws_on_the_same_few_lanes_in_every_batch() -> None:
    size, world_size = 4 * LANES, 8
    local = size // world_size
    for rank in range(world_size):
        parts = [batch_positions(start, size)[rank * local : (rank + 1) * local] for start in (0, size, 7 * size)]
        lanes = [set((part % LANES).tolist()) for part in parts]
        assert lanes[0] == lanes[1] == lanes[2]
        assert len(lanes[0]) == LANES // world_size


def test_a_mixture_of_many_orders_permutes_no_window_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that they share would be too small for so many, and each batch would take long."""
    orders = [epoch_order(np.full(2, 5_000_000, np.int64), seed, 0) for seed in range(20)]
    made = []
    monkeypatch.setattr(shards.order, "permutation", lambda key, count: made.append(key) or permutation(key, count))
    for start in (10**6, 10**6 + 4096):
        for order in orders:
            order.locate(np.arange(start, start + 4096, dtype=np.int64))
    assert len(made) == len(set(made)) >= 20 * LANES


def test_the_windows_that_an_order_keeps_are_bounded() -> None:
    order = epoch_order(np.full(2, 5_000_000, np.int64), 0, 0)
    for start in range(0, 9_500_000, 10**6):
        order.locate(np.arange(start, start + LANES, dtype=np.int64))
    assert len(order._windows) <= WINDOWS_KEPT


def test_the_shards_in_use_at_a_time_fit_the_readers_caches() -> None:
    order = epoch_order(np.full(6000, 1000, np.int64), 0, 0)
    kept: OrderedDict[int, None] = OrderedDict()
    misses, half = 0, order.num_samples // 2
    shard, _row = order.locate(np.arange(half, half + LANES * WINDOW // 4, dtype=np.int64))
    warm = len(shard) // 2
    for place, one in enumerate(shard.tolist()):
        misses += place >= warm and one not in kept
        kept[one] = None
        kept.move_to_end(one)
        if len(kept) > INDEXES:
            kept.popitem(last=False)
    assert misses / (len(shard) - warm) < 0.005, "new runs come into use, but what is in use stays"
    assert TABLES >= INDEXES
