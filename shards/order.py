"""The canonical order of an epoch: a pure function of shard sizes, seed and epoch.

World size, loader workers and interruptions are not among its inputs, so batch `n` holds the same samples
however the run is spread, and a run resumes from one number, its position.

How it mixes and still reads in sequence: every shard is cut into *runs* of consecutive samples; all runs of
the data set are permuted; the resulting sequence is cut into `lanes` equal spans, and within a lane the
samples of each *window* of consecutive runs are permuted. Position `p` of the epoch is element `p // lanes`
of lane `p % lanes`: a batch draws evenly on all lanes, and a rank that takes the samples of a few lanes
touches few runs at a time. Small data sets get shorter runs, down to single samples, so that they mix fully.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from shards.keyed_random import key_of, permutation

Ints = npt.NDArray[np.int64]

LANES = 64
RUN_LENGTH = 512
RUNS_PER_LANE = 64
"""A lane holds at least this many runs, or runs of one sample."""
WINDOW = 8192
"""Samples that are permuted among themselves within a lane."""

_RUNS, _WINDOW = 1, 2  # what a permutation is for; part of its key


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
    """(runs,) the place of each run's first sample in the permuted sequence."""

    def locate(self, positions: Ints) -> tuple[Ints, Ints]:
        """Shard and row within the shard, `(n,)` each, for `(n,)` positions in `0 .. num_samples - 1`."""
        lane, place = positions % LANES, positions // LANES
        shorter, longer = divmod(self.num_samples, LANES)
        lane_start = lane * shorter + np.minimum(lane, longer)
        sequence = np.empty_like(positions)
        window = place // WINDOW
        for group_lane, group_window in {(int(a), int(b)) for a, b in zip(lane, window, strict=True)}:
            members = (lane == group_lane) & (window == group_window)
            lane_length = shorter + (group_lane < longer)
            length = min(WINDOW, lane_length - group_window * WINDOW)
            shuffled = _window(self.seed, self.epoch, group_lane, group_window, length)
            sequence[members] = group_window * WINDOW + shuffled[place[members] % WINDOW]
        sequence += lane_start
        run = np.searchsorted(self.run_start, sequence, side="right") - 1
        return self.run_shard[run], self.run_row[run] + sequence - self.run_start[run]


@lru_cache(maxsize=2 * LANES)
def _window(seed: int, epoch: int, lane: int, window: int, length: int) -> Ints:
    return permutation(key_of(seed, epoch, _WINDOW, lane, window), length)


def epoch_order(samples: Ints, seed: int, epoch: int) -> EpochOrder:
    """The order of epoch `epoch` over shards that hold `samples` (n_shards,) samples each."""
    num_samples = int(samples.sum())
    run_length = max(1, min(RUN_LENGTH, num_samples // (LANES * RUNS_PER_LANE)))
    runs = -(-samples // run_length)
    shard = np.repeat(np.arange(len(samples)), runs)
    first_run = np.cumsum(runs) - runs
    row = (np.arange(len(shard)) - first_run[shard]) * run_length
    length = np.minimum(run_length, samples[shard] - row)
    shuffled = permutation(key_of(seed, epoch, _RUNS), len(shard))
    lengths = length[shuffled]
    return EpochOrder(
        seed=seed,
        epoch=epoch,
        num_samples=num_samples,
        run_shard=shard[shuffled],
        run_row=row[shuffled],
        run_start=np.cumsum(lengths) - lengths,
    )


def batch_positions(start: int, count: int) -> Ints:
    """The positions `start .. start + count - 1` in the order in which they stand in the global batch.

    Sorted by lane, so that a rank's slice of the batch draws on a fixed few of the lanes.
    """
    positions = np.arange(start, start + count, dtype=np.int64)
    return positions[np.argsort(positions % LANES, kind="stable")]
