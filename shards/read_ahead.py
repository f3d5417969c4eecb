"""Which runs of samples come into use: told to the readers once each, ahead of the reads."""

from collections.abc import Iterable, Sequence

import numpy as np

from shards.mixture import DatasetRuns
from shards.order import LIVE_RUNS
from shards.samples import SampleLoader

MOST_TOLD = 8 * LIVE_RUNS
"""Runs of a data set that are remembered as told: more than are in use at a time."""


class ReadAhead:
    """Tells the readers of a mixture's data sets which runs to bring up."""

    def __init__(self, loaders: Sequence[SampleLoader], by_caption: Sequence[bool]) -> None:
        """`by_caption` says of each data set whether its runs are of captions rather than of samples."""
        self.loaders, self.by_caption = loaders, by_caption
        self._told: dict[tuple[int, int, int, int], None] = {}
        """Data set, its own epoch, shard and first row of each run, the last one last."""

    def tell(self, found: Iterable[DatasetRuns]) -> None:
        """Have new ones of the runs brought up; what a reader does not take is told again the next time."""
        new: dict[tuple[int, int, int, int], int] = {}
        for dataset, epoch, runs in found:
            for run in zip(runs.shard.tolist(), runs.first_row.tolist(), runs.last_row.tolist(), strict=True):
                if (dataset, epoch, *run[:2]) not in self._told:
                    new[dataset, epoch, *run[:2]] = run[2]
        for number, loader in enumerate(self.loaders):
            loader.reader.bring_indexes(shard for dataset, _epoch, shard, _first in new if dataset == number)
        for (dataset, epoch, shard, first), last in new.items():
            if self._prefetch(dataset, shard, first, last):
                self._told[dataset, epoch, shard, first] = None
        while len(self._told) > MOST_TOLD * len(self.loaders):
            del self._told[next(iter(self._told))]

    def _prefetch(self, dataset: int, shard: int, first: int, last: int) -> bool:
        loader = self.loaders[dataset]
        if self.by_caption[dataset]:  # of the images that the captions belong to
            ends = loader.caption_ends(shard)
            first, last = np.searchsorted(ends, [first, last - 1], side="right").tolist()
            last += 1
        return loader.reader.prefetch(shard, first, last)
