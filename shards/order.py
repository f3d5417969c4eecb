"""The canonical order of an epoch: a pure function of shard sizes, seed and epoch.

World size, loader workers and interruptions are not among its inputs, so batch `n` holds the same samples
however the run is spread, and a run resumes from one number, its position.

How it mixes and still reads in sequence: every shard is cut into *runs* of consecutive samples; all runs of
the data set are permuted; the resulting sequence is cut into `lanes` equal spans, and within a lane the
samples of each *window* of consecutive runs are permuted. Position `p` of the epoch is element `p // lanes`
of lane `p % lanes`: a batch draws evenly on all lanes, and a rank that takes the samples of a few lanes
touches few runs at a time. The lanes come to the ends of their windows one after another, so that the reads
of new runs are spread evenly, over the epoch and over the ranks. Small data sets get shorter runs, down to
single samples, so that they mix fully, and single windows.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from shards.keyed_random import key_of, permutation

Ints = npt.NDArray[np.int64]

LANES = 64
RUN_LENGTH = 512
RUNS_PER_LANE = 64
"""A lane holds at least this many runs, or runs of one sample."""
WINDOW = 16384
"""Samples that are permuted among themselves within a lane."""
LIVE_RUNS = LANES * (WINDOW // RUN_LENGTH + 1)
"""Runs that an epoch draws on at a time, each in a shard of its own in a large data set."""
STAGGER: Ints = np.array([int(f"{lane:06b}"[::-1], 2) * (WINDOW // LANES) for lane in range(LANES)])
"""(LANES,) how much earlier than lane 0's each lane's windows end.

Neighbouring lanes are far apart (the lane's bits in reverse), so that a rank's few lanes, too, take turns.
"""

WINDOWS_KEPT = 2 * LANES
"""Of an order, 32 KiB each: a batch, with what is read ahead, may lie across the end of one in every lane."""

_RUNS, _WINDOW = 1, 2  # what a permutation is for; part of its key


@dataclass(frozen=True, eq=False)
class Runs:
    """Stretches of consecutive samples: rows `first_row .. last_row - 1` of `shard`, `(runs,)` each."""

    shard: Ints
    first_row: Ints
    last_row: Ints


@dataclass(frozen=True, eq=False)
class EpochOrder:
    """Maps the positions `0 .. num_samples - 1` of one epoch to samples, each exactly once."""

    seed: int
    epoch: int
    num_samples: int
    run_shard: Ints
    """(runs,) the shard of each run, in the epoch's order of runs."""
    run_row: Ints
    """(runs,) the first sample of each run within its shard."""
    run_start: Ints
    """(runs + 1,) the place of each run's first sample in the permuted sequence, and the sequence's length."""
    _windows: OrderedDict[tuple[int, int], npt.NDArray[np.uint16]] = field(
        default_factory=OrderedDict, init=False, repr=False
    )
    """The permutations of the windows used last, by lane and window."""

    def locate(self, positions: Ints) -> tuple[Ints, Ints]:
        """Shard and row within the shard, `(n,)` each, for `(n,)` positions in `0 .. num_samples - 1`."""
        run, place = self._places(positions)
        return self.run_shard[run], self.run_row[run] + place

    def runs(self, positions: Ints) -> Runs:
        """The whole runs, each once, that the samples at `(n,)` positions lie in, in order of first need.

        What the positions of the next batches name here, and those of the last ones did not, comes into use.
        """
        run, first = np.unique(self._places(positions)[0], return_index=True)
        run = run[np.argsort(first)]
        length = self.run_start[run + 1] - self.run_start[run]
        return Runs(self.run_shard[run], self.run_row[run], self.run_row[run] + length)

    def _places(self, positions: Ints) -> tuple[Ints, Ints]:
        """The run of each position, and the place within that run."""
        lane, place = positions % LANES, positions // LANES
        shorter, longer = divmod(self.num_samples, LANES)
        lane_length = shorter + (lane < longer)
        stagger = STAGGER[lane] if self.num_samples > LANES * WINDOW else np.zeros_like(lane)
        window = (place + stagger) // WINDOW
        first = np.maximum(window * WINDOW - stagger, 0)
        length = np.minimum((window + 1) * WINDOW - stagger, lane_length) - first
        sequence = lane * shorter + np.minimum(lane, longer) + first
        for members in groups(lane + LANES * window):
            one = members[0]
            shuffled = self._window(int(lane[one]), int(window[one]), int(length[one]))
            sequence[members] += shuffled[place[members] - first[one]]
        run = np.searchsorted(self.run_start, sequence, side="right") - 1
        return run, sequence - self.run_start[run]

    def _window(self, lane: int, window: int, length: int) -> npt.NDArray[np.uint16]:
        # kept by the order itself: one cache of all orders would be too small for a large mixture
        key = (lane, window)
        if key not in self._windows:
            shuffled = permutation(key_of(self.seed, self.epoch, _WINDOW, lane, window), length)
            self._windows[key] = shuffled.astype(np.uint16)
            if len(self._windows) > WINDOWS_KEPT:
                self._windows.popitem(last=False)
        self._windows.move_to_end(key)
        return self._windows[key]


def groups(labels: Ints) -> Iterator[Ints]:
    """For every distinct value among `(n,)` labels the indices, ascending, at which it stands."""
    by_label = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[by_label], prepend=-1))
    return iter(np.split(by_label, starts)[1:])


def epoch_order(sizes: Ints, seed: int, epoch: int) -> EpochOrder:
    """The order of epoch `epoch` over shards that hold `sizes` (n_shards,) samples each, or captions."""
    num_samples = int(sizes.sum())
    run_length = max(1, min(RUN_LENGTH, num_samples // (LANES * RUNS_PER_LANE)))
    runs = -(-sizes // run_length)
    shard = np.repeat(np.arange(len(sizes)), runs)
    first_run = np.cumsum(runs) - runs
    row = (np.arange(len(shard)) - first_run[shard]) * run_length
    length = np.minimum(run_length, sizes[shard] - row)
    shuffled = permutation(key_of(seed, epoch, _RUNS), len(shard))
    return EpochOrder(
        seed=seed,
        epoch=epoch,
        num_samples=num_samples,
        run_shard=shard[shuffled],
        run_row=row[shuffled],
        run_start=np.concatenate([[0], np.cumsum(length[shuffled])]),
    )


def batch_positions(start: int, count: int) -> Ints:
    """The positions `start .. start + count - 1` in the order in which they stand in the global batch.

    Sorted by lane, so that a rank's slice of the batch draws on a fixed few of the lanes.
    """
    positions = np.arange(start, start + count, dtype=np.int64)
    return positions[np.argsort(positions % LANES, kind="stable")]
