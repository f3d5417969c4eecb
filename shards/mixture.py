"""The canonical order of a mixture of data sets: a pure function of their shard sizes, counts, seed and epoch.

Like the order of one data set (`shards.order`) it knows nothing of world size, workers or interruptions.

Data set `i` gives `m_i` of the `N = sum of all m` positions of every mixture epoch. Its own endless stream
(its own epoch 0, then 1, ...) is read on from one mixture epoch to the next, so whatever its share, each
of its samples comes once before any comes again. The positions are cut into blocks of some thousands. How many
of a block's positions a data set gets is the difference of exact cumulative counts at the block's ends; which
ones, a permutation decides. A mixture of one data set is that data set's own order.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from shards.errors import DataError
from shards.keyed_random import key_of, permutation
from shards.order import LANES, EpochOrder, Ints, Runs, epoch_order, groups

BLOCK = 4096
"""Positions within which the proportions hold, at the least; more with more than 64 data sets."""

_SLOTS, _DATASET = 5, 6  # what a key is for; part of it


class Located(NamedTuple):
    """Where the samples of `n` positions lie; `(n,)` each."""

    dataset: Ints
    epoch: Ints
    """The data set's own epoch: how often its samples have come before."""
    shard: Ints
    row: Ints


class DatasetRuns(NamedTuple):
    """Runs of one data set in one epoch of its own."""

    dataset: int
    epoch: int
    runs: Runs


def dataset_seed(seed: int, dataset: int) -> int:
    """The seed of one of a mixture's data sets; the first one's is that of the run."""
    return int(key_of(seed, _DATASET, dataset)) if dataset else seed


@dataclass(frozen=True, eq=False)
class MixtureOrder:
    """Maps the positions `0 .. num_samples - 1` of any epoch of a mixture to data sets and their samples."""

    sizes: Sequence[Ints]
    """For every data set the samples, or captions, of each of its shards."""
    counts: tuple[int, ...]
    """The samples that each data set gives to one epoch of the mixture."""
    seed: int
    _orders: dict[int, dict[int, EpochOrder]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        assert len(self.sizes) == len(self.counts) > 0
        assert min(self.counts) > 0
        assert self._own_samples.min() > 0

    @cached_property
    def num_samples(self) -> int:
        """Of one epoch of the mixture."""
        return sum(self.counts)

    @cached_property
    def _own_samples(self) -> Ints:
        return np.array([int(sizes.sum()) for sizes in self.sizes])

    def locate(self, epoch: int, positions: Ints) -> Located:
        """Where the samples at `(n,)` positions of a mixture epoch, `0 .. num_samples - 1` each, lie."""
        dataset, own_epoch, own_position = self._own(epoch, positions)
        shard, row = np.empty_like(positions), np.empty_like(positions)
        for members in self._parts(dataset, own_epoch):
            order = self._order(int(dataset[members[0]]), int(own_epoch[members[0]]))
            shard[members], row[members] = order.locate(own_position[members])
        return Located(dataset, own_epoch, shard, row)

    def runs(self, epoch: int, positions: Ints) -> list[DatasetRuns]:
        """For every data set, and every epoch of its own, the runs that the samples at positions lie in.

        As `EpochOrder.runs`. A data set stands twice where its own epoch ends among the positions.
        """
        dataset, own_epoch, own_position = self._own(epoch, positions)
        found = []
        for members in self._parts(dataset, own_epoch):
            number, epoch_of = int(dataset[members[0]]), int(own_epoch[members[0]])
            runs = self._order(number, epoch_of).runs(own_position[members])
            found.append(DatasetRuns(number, epoch_of, runs))
        return found

    def batch_positions(self, epoch: int, start: int, count: int) -> Ints:
        """The positions `start .. start + count - 1` in the order in which they stand in the global batch.

        Sorted by the lanes of the data sets, which share each lane's part of the batch: a rank's slice draws
        on a fixed few of every data set's lanes.
        """
        positions = np.arange(start, start + count, dtype=np.int64)
        own_position = self._own(epoch, positions)[2]
        return positions[np.argsort(own_position % LANES, kind="stable")]

    def _own(self, epoch: int, positions: Ints) -> tuple[Ints, Ints, Ints]:
        """The data set of each position, its own epoch, and the position in that."""
        dataset, entry = np.empty_like(positions), np.empty_like(positions)
        length = _block_length(len(self.counts))
        # what is left over at the end belongs to the last whole block: its quotas could not be kept alone
        last = max(self.num_samples // length - 1, 0)
        block = np.minimum(positions // length, last)
        for members in groups(block):
            number = int(block[members[0]])
            end = self.num_samples if number == last else (number + 1) * length
            slots = _slots(self.counts, self.seed, epoch, number, number * length, end)
            place = positions[members] - number * length
            dataset[members], entry[members] = slots[0][place], slots[1][place]
        entry += epoch * np.array(self.counts, np.int64)[dataset]
        size = self._own_samples[dataset]
        return dataset, entry // size, entry % size

    def _parts(self, dataset: Ints, own_epoch: Ints) -> list[Ints]:
        return [of_dataset[members] for of_dataset in groups(dataset) for members in groups(own_epoch[of_dataset])]

    def _order(self, dataset: int, own_epoch: int) -> EpochOrder:
        orders = self._orders.setdefault(dataset, {})
        if own_epoch not in orders:
            if len(orders) == 2:  # a batch may lie across the end of one
                del orders[next(iter(orders))]
            orders[own_epoch] = epoch_order(self.sizes[dataset], dataset_seed(self.seed, dataset), own_epoch)
        return orders[own_epoch]


def _block_length(datasets: int) -> int:
    # the largest data set takes what rounding leaves: at most 1 a block for every other one, which must not
    # be more than its own share, at least 1 / datasets of the block
    return max(BLOCK, 1 << (datasets * datasets - 1).bit_length())


def _cumulative(counts: Sequence[int], position: int) -> list[int]:
    """How many of the first `position` positions belong to each data set; plain integers do not overflow."""
    total = sum(counts)
    before = [position * count // total for count in counts]
    largest = counts.index(max(counts))
    before[largest] += position - sum(before)
    return before


@lru_cache(maxsize=32)
def _slots(counts: tuple[int, ...], seed: int, epoch: int, block: int, start: int, end: int) -> tuple[Ints, Ints]:
    """The data set of each position in `start .. end - 1`, and its entry, counted from the epoch's start."""
    before = np.array(_cumulative(counts, start))
    quotas = np.array(_cumulative(counts, end)) - before
    assert (quotas >= 0).all()
    ordered = np.repeat(np.arange(len(counts)), quotas)
    dataset = ordered[permutation(key_of(seed, epoch, _SLOTS, block), end - start)]
    entry = np.empty_like(dataset)
    entry[np.argsort(dataset, kind="stable")] = (
        np.arange(end - start) - (np.cumsum(quotas) - quotas - before)[ordered]
    )
    return dataset, entry


def epoch_counts(num_samples: Sequence[int], repeats: Sequence[float]) -> tuple[int, ...]:
    """The counts with which each data set comes `repeats` times in an epoch of the mixture.

    1 for all of them is their concatenation, each sample once an epoch; 0.5 is half of a data set in one epoch
    and the other half in the next. Raises `DataError` when a weight is not above 0 or gives no sample.
    """
    weights = _weights(num_samples, repeats)
    return _at_least_one([round(weight * number) for weight, number in zip(weights, num_samples, strict=True)])


def sampling_counts(
    num_samples: Sequence[int], shares: Sequence[float], total: int | None = None
) -> tuple[int, ...]:
    """The counts with which each data set has its share of every batch; only the shares' ratios count.

    An epoch of the mixture has `total` samples, by default as many as all data sets together. Shares are
    rounded by largest remainders. Raises `DataError` when a weight is not above 0 or gives no sample.
    """
    weights = _weights(num_samples, shares)
    total = sum(num_samples) if total is None else total
    exact = [total * weight / sum(weights) for weight in weights]
    counts = [math.floor(count) for count in exact]
    by_remainder = sorted(range(len(counts)), key=lambda dataset: counts[dataset] - exact[dataset])
    for dataset in by_remainder[: total - sum(counts)]:
        counts[dataset] += 1
    return _at_least_one(counts)


def _weights(num_samples: Sequence[int], weights: Sequence[float]) -> list[Fraction]:
    if len(weights) != len(num_samples):
        raise DataError(f"{len(num_samples)} data sets, but {len(weights)} weights; give one for each")
    for number, weight in enumerate(weights, start=1):
        if not (math.isfinite(weight) and weight > 0):
            raise DataError(f"the weight of data set {number} is {weight}; give a number above 0, or leave it out")
    return [Fraction(str(weight)) for weight in weights]  # as written: 0.1 is a tenth


def _at_least_one(counts: Sequence[int]) -> tuple[int, ...]:
    for number, count in enumerate(counts, start=1):
        if count < 1:
            raise DataError(
                f"the weight of data set {number} gives it no sample in an epoch; raise it, or leave it out"
            )
    return tuple(counts)
