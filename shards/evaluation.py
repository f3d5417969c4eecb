"""A folder of shards for evaluation: every sample once with all of its captions, in the manifest's order."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch.utils.data import Dataset

from shards.batch import NO_ID, Batch, stack_images, stack_regions
from shards.errors import DataError
from shards.images import Transform
from shards.loader import Rank, serve
from shards.manifest import Manifest
from shards.samples import SampleLoader

Tokenize = Callable[[list[str]], torch.Tensor]
"""C captions -> (C, T) int64."""


@dataclass(frozen=True)
class Span:
    """The samples `first .. last - 1` of the manifest's order."""

    first: int
    last: int
    following: "Span | None" = None
    """What the same process is asked for next: it is read ahead."""


class EvaluationDataset(Dataset[Batch]):
    """Maps a `Span` to a `Batch`. A sample that does not decode is an error: a measurement leaves nothing out."""

    def __init__(
        self, manifest: Manifest, transform: Transform, tokenize: Tokenize, region_width: int | None = None
    ) -> None:
        self.manifest, self.tokenize = manifest, tokenize
        self.loader = SampleLoader(manifest, transform, region_width=region_width)

    def _read_ahead(self, spans: list[Span]) -> None:
        """Have the reader bring up the rows of the spans, all at once."""
        ends = np.cumsum(self.manifest.samples)
        runs: list[tuple[int, int, int]] = []
        for span in spans:
            low, high = np.searchsorted(ends, (span.first, span.last - 1), side="right").tolist()
            for shard in range(low, high + 1):
                before, size = int(self.manifest.first_sample[shard]), int(self.manifest.samples[shard])
                first, last = max(span.first - before, 0), min(span.last - before, size)
                if first < last:  # some shards may be empty
                    runs.append((shard, first, last))
        self.loader.reader.bring_indexes(shard for shard, _first, _last in runs)
        for run in runs:
            self.loader.reader.prefetch(*run)

    def __getitem__(self, span: Span) -> Batch:
        self._read_ahead([span, span.following] if span.following else [span])
        samples = np.arange(span.first, span.last)
        shards = np.searchsorted(self.manifest.first_sample, samples, side="right") - 1
        rows = samples - self.manifest.first_sample[shards]
        key = np.uint64(0)  # nothing is drawn
        loaded = [self.loader.load(int(shard), int(row), key) for shard, row in zip(shards, rows, strict=True)]
        captions = [caption for one in loaded for caption in one.captions]
        owner = np.repeat(np.arange(len(loaded)), [len(one.captions) for one in loaded])
        regions, region_mask = stack_regions([one.regions for one in loaded])
        return Batch(
            images=stack_images([one.pixels for one in loaded]),
            regions=regions,
            region_mask=region_mask,
            text=self.tokenize(captions),
            caption_image=torch.from_numpy(owner),
            image_ids=torch.tensor([one.image_id for one in loaded]),
            samples=torch.from_numpy(samples),
            valid=torch.ones(len(loaded), dtype=torch.bool),
            captions=captions,
            caption_ids=torch.tensor(
                [one for each in loaded for one in each.caption_ids or [NO_ID] * len(each.captions)]
            ),
        )


def evaluation_batches(
    dataset: EvaluationDataset, batch_size: int, rank: Rank, workers: int = 0
) -> Iterator[Batch]:
    """Every sample once, dealt to the ranks in blocks.

    All ranks get the same number of batches, of at most `batch_size` (2 or more) samples each, so that they
    can run collectives batch by batch. Raises `DataError` when there are fewer samples than ranks.
    """
    total, world_size = dataset.manifest.num_samples, rank.world_size
    if total < world_size:
        raise DataError(f"{dataset.manifest.location}: {total} samples for {world_size} processes; start fewer")
    assert batch_size >= 2, "with batches of one sample, ranks could not have equally many"
    start, end = (total * place // world_size for place in (rank.rank, rank.rank + 1))
    longest = -(-total // world_size)
    batches = -(-longest // batch_size)
    edges = [start + (end - start) * place // batches for place in range(batches + 1)]
    spans = [Span(a, b) for a, b in pairwise(edges)]
    after = dict(zip(spans, spans[max(1, workers) :], strict=False))  # the processes take turns
    return serve(dataset, [replace(span, following=after.get(span)) for span in spans], workers)
