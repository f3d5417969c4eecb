"""The training set: one folder of shards or a mixture of several, as a torch dataset asked for whole batches."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import chain
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset, get_worker_info

from shards.augment import drop_regions
from shards.batch import Batch, Undecodable, stack_images, stack_regions
from shards.errors import DataError, SampleError
from shards.images import Transform
from shards.keyed_random import below, extended, key_of
from shards.manifest import Manifest
from shards.mixture import DatasetRuns, Located, MixtureOrder, epoch_counts, sampling_counts
from shards.read_ahead import ReadAhead
from shards.samples import Loaded, SampleLoader
from shards.sources.record import Regions

Captions = Literal["one", "first", "all"]
TokenizeVisits = Callable[[list[str], npt.NDArray[np.uint64]], torch.Tensor]
"""C captions and the (C,) random keys of their visits -> (C, T) int64."""


@dataclass(frozen=True)
class Unkeyed:
    """A tokenizer that draws nothing, where one is expected that may."""

    tokenize: Callable[[list[str]], torch.Tensor]

    def __call__(self, captions: list[str], _keys: npt.NDArray[np.uint64]) -> torch.Tensor:
        return self.tokenize(captions)


_key_of = lru_cache(maxsize=64)(key_of)  # what the keys of a batch have in common is worked out once
_CROP, _CAPTION, _WORDS, _REGIONS = 3, 4, 7, 8  # what a random number is for; part of its key
BATCHES_AHEAD = 2
"""What this many of a worker's next batches need is read ahead."""
MOST_REPLACEMENTS = 1000
"""Undecodable samples in a row after which the data set is taken to be broken."""


@dataclass(frozen=True)
class Part:
    """One data set of a mixture."""

    manifest: Manifest
    weight: float = 1.0
    captions: Captions = "one"
    """Of an image's captions: one drawn a visit, the first, or all, each a visit of its own."""

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Visits a shard in one pass over the data set."""
        return self.manifest.captions if self.captions == "all" else self.manifest.samples


@dataclass(frozen=True)
class TrainingSet:
    """The data sets of a run and how they are mixed.

    `mix` "epoch": an epoch visits each sample of a data set `weight` times; "sampling": the data sets have
    shares of `weight` in the batches, and an epoch is as long as all of them together.
    """

    parts: tuple[Part, ...]
    mix: Literal["epoch", "sampling"] = "epoch"

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Visits of each data set in one epoch. Raises `DataError` where a data set gives none."""
        sizes = [int(part.sizes.sum()) for part in self.parts]
        for part in self.parts:
            if not (part.manifest.num_samples and part.manifest.num_captions):
                lacking = "captions" if part.manifest.num_samples else "samples"
                raise DataError(f"{part.manifest.location}: the data set holds no {lacking}; leave it out")
        weights = [part.weight for part in self.parts]
        return epoch_counts(sizes, weights) if self.mix == "epoch" else sampling_counts(sizes, weights)

    @cached_property
    def num_visits(self) -> int:
        """Length of an epoch."""
        return sum(self.counts)

    @cached_property
    def first_sample(self) -> list[int]:
        """The number of each data set's first sample, counted over all of them."""
        samples = [part.manifest.num_samples for part in self.parts]
        return [sum(samples[:place]) for place in range(len(samples))]

    @property
    def num_samples(self) -> int:
        return sum(part.manifest.num_samples for part in self.parts)

    @cached_property
    def holds(self) -> tuple[str, ...]:
        """What all data sets hold, and so every batch. Raises `DataError` where that is nothing."""
        shared = set.intersection(*(set(part.manifest.holds) for part in self.parts))
        if not shared:
            raise DataError(f"{self.name}: some hold images alone, others regions alone; leave one kind out")
        return tuple(sorted(shared))

    @property
    def name(self) -> str:
        """The folders, for messages."""
        return " + ".join(part.manifest.location for part in self.parts)


@dataclass(frozen=True)
class Request:
    """The part `first .. last - 1` of the global batch that starts at `position` of `epoch`."""

    epoch: int
    position: int
    global_batch_size: int
    first: int
    last: int


@dataclass(frozen=True)
class _Visit:
    """One position of an epoch: which sample of which data set, and its turn."""

    part: int
    shard: int
    row: int
    caption: int | None
    """The place of the caption, where every caption is a visit of its own."""
    sample: int
    epoch: int
    """Of the data set itself, which counts its own passes in a mixture."""


class TrainDataset(Dataset[Batch]):
    """Maps a `Request` to a `Batch`. Whatever is random is keyed by (seed, epoch, sample)."""

    def __init__(
        self,
        training_set: TrainingSet,
        transform: Transform,
        tokenize: TokenizeVisits,
        seed: int = 0,
        region_drop: float = 0.0,
        region_width: int | None = None,
    ) -> None:
        """A sample whose regions are not of `region_width` features, where it is given, is replaced."""
        self.training_set, self.tokenize = training_set, tokenize
        self.seed, self.region_drop = seed, region_drop
        self.loaders = [
            SampleLoader(part.manifest, transform, training_set.holds, region_width) for part in training_set.parts
        ]
        self.order = MixtureOrder([part.sizes for part in training_set.parts], training_set.counts, seed)
        self.ahead = ReadAhead(self.loaders, [part.captions == "all" for part in training_set.parts])
        self._runs: dict[Request, list[DatasetRuns]] = {}
        """Of the batches that were last read ahead: each is asked for as one of three, and computed once."""

    def _positions(self, request: Request) -> npt.NDArray[np.int64]:
        """Of the whole global batch; what the epoch lacks is filled from its start."""
        held = min(request.global_batch_size, self.training_set.num_visits - request.position)
        real = self.order.batch_positions(request.epoch, request.position, held)
        return np.concatenate([real, np.arange(request.global_batch_size - held)])

    def _read_ahead(self, request: Request) -> None:
        """Have the readers bring up the runs of this batch, and of this worker's next ones."""
        worker = get_worker_info()
        stride = (worker.num_workers if worker else 1) * request.global_batch_size
        ahead = (replace(request, position=request.position + step * stride) for step in range(1 + BATCHES_AHEAD))
        # the next epoch's first runs are read without notice
        within = [one for one in ahead if one.position < self.training_set.num_visits]
        self._runs = {one: self._runs.get(one) or self._runs_of(one) for one in within}
        self.ahead.tell(chain.from_iterable(self._runs.values()))

    def _runs_of(self, request: Request) -> list[DatasetRuns]:
        return self.order.runs(request.epoch, self._positions(request)[request.first : request.last])

    def _visits(self, located: Located) -> list[_Visit]:
        return [self._visit(*place) for place in zip(*(column.tolist() for column in located), strict=True)]

    def _visit(self, part: int, epoch: int, shard: int, row: int) -> _Visit:
        manifest = self.training_set.parts[part].manifest
        caption = None
        if self.training_set.parts[part].captions == "all":
            ends = self.loaders[part].caption_ends(shard)
            visit, row = row, int(np.searchsorted(ends, row, side="right"))
            caption = visit - (int(ends[row - 1]) if row else 0)
        sample = self.training_set.first_sample[part] + int(manifest.first_sample[shard]) + row
        return _Visit(part, shard, row, caption, sample, epoch)

    def __getitem__(self, request: Request) -> Batch:
        self._read_ahead(request)
        part = slice(request.first, request.last)
        positions = self._positions(request)[part]
        valid = (
            np.arange(request.position, request.position + request.global_batch_size) < self.training_set.num_visits
        )
        visits = self._visits(self.order.locate(request.epoch, positions))
        undecodable: list[Undecodable] = []
        loaded: list[Loaded] = []
        for place, position in enumerate(positions):
            visits[place], sample = self._usable(request.epoch, int(position), visits[place], undecodable)
            loaded.append(sample)
        captions = [self._caption(visit, one.captions) for visit, one in zip(visits, loaded, strict=True)]
        regions, region_mask = stack_regions(
            [self._regions(visit, one) for visit, one in zip(visits, loaded, strict=True)]
        )
        keys = np.array([self._key(visit, _WORDS) for visit in visits], np.uint64)
        return Batch(
            images=stack_images([one.pixels for one in loaded]),
            regions=regions,
            region_mask=region_mask,
            text=self.tokenize(captions, keys),
            caption_image=torch.arange(len(loaded)),
            image_ids=torch.tensor([one.image_id for one in loaded]),
            samples=torch.tensor([visit.sample for visit in visits]),
            valid=torch.from_numpy(valid[part]),
            captions=captions,
            undecodable=undecodable,
        )

    def _usable(
        self, epoch: int, position: int, visit: _Visit, undecodable: list[Undecodable]
    ) -> tuple[_Visit, Loaded]:
        """The sample at `position`, or the first usable one after it in the epoch's order."""
        total = self.training_set.num_visits
        for step in range(tries := min(MOST_REPLACEMENTS, total)):
            if step:
                following = np.array([(position + step) % total], np.int64)
                visit = self._visits(self.order.locate(epoch, following))[0]
            try:
                return visit, self.loaders[visit.part].load(visit.shard, visit.row, self._key(visit, _CROP))
            except SampleError as error:
                undecodable.append(Undecodable(visit.sample, str(error)))
        raise DataError(
            f"{self.training_set.name}: {tries:,} samples in a row do not decode; the last: "
            f"{undecodable[-1].reason}"
        )

    def _key(self, visit: _Visit, purpose: int) -> np.uint64:
        turn = () if visit.caption is None else (visit.caption,)
        return extended(_key_of(self.seed, visit.epoch, purpose), visit.sample, *turn)

    def _caption(self, visit: _Visit, captions: list[str]) -> str:
        if visit.caption is not None:
            return captions[visit.caption]
        if self.training_set.parts[visit.part].captions == "first":
            return captions[0]
        return captions[below(self._key(visit, _CAPTION), len(captions))]

    def _regions(self, visit: _Visit, one: Loaded) -> Regions | None:
        if one.regions is None or not self.region_drop:
            return one.regions
        return one.regions[drop_regions(len(one.regions), self._key(visit, _REGIONS), self.region_drop)]
