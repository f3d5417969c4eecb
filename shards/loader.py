"""Batches for one rank: of the canonical order for training, of the manifest's order for evaluation.

Every rank computes which samples are its own; nothing is exchanged, so no rank ever waits for another, with
fewer shards than workers and with uneven shards alike. Loader workers fetch whole batches in turn, so their
number does not change what is read.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from torch.utils.data import DataLoader, Dataset

from shards.batch import Batch
from shards.dataset import Request, ShardDataset
from shards.errors import DataError


@dataclass(frozen=True)
class Rank:
    """One process's place among `world_size`."""

    rank: int = 0
    world_size: int = 1


@dataclass
class Position:
    """The whole state of a loader: the next batch starts at `position` of `epoch`."""

    epoch: int = 0
    position: int = 0


class _ErrorsAsValues(Dataset[Batch | DataError]):
    """Hands a `DataError` over in place of the batch: raised in a worker, torch would bury it in a traceback."""

    def __init__(self, dataset: ShardDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, request: Request) -> Batch | DataError:
        try:
            return self.dataset[request]
        except DataError as error:
            return error


def _serve(dataset: ShardDataset, requests: Iterable[Request], workers: int, pin: bool) -> Iterator[Batch]:
    loader = DataLoader(
        _ErrorsAsValues(dataset),
        sampler=requests,  # requests take the place of indices
        batch_size=None,
        num_workers=workers,
        pin_memory=pin,
        prefetch_factor=4 if workers else None,
        # not fork: the training process holds threads of its collectives
        multiprocessing_context="spawn" if workers else None,
    )
    for batch in loader:
        if isinstance(batch, DataError):
            raise batch
        yield batch


class TrainLoader:
    """An endless stream of this rank's part of each global batch, in the canonical order, epoch after epoch.

    The last partial batch of an epoch is dropped: its samples, fewer than one global batch and others in
    every epoch, are not seen in that epoch; all the others are seen once. `state` is the position after the
    last batch that was handed out, whatever the workers have fetched ahead.
    """

    def __init__(
        self,
        dataset: ShardDataset,
        global_batch_size: int,
        rank: Rank,
        workers: int = 0,
        state: Position | None = None,
        pin_memory: bool = False,
    ) -> None:
        if global_batch_size % rank.world_size:
            raise DataError(
                f"a global batch of {global_batch_size} does not divide among {rank.world_size} processes"
            )
        if global_batch_size > dataset.manifest.num_samples:
            raise DataError(
                f"{dataset.manifest.location}: {dataset.manifest.num_samples:,} samples do not fill one global "
                f"batch of {global_batch_size:,}"
            )
        self.dataset, self.global_batch_size, self.rank = dataset, global_batch_size, rank
        self.workers, self.pin_memory = workers, pin_memory
        self.state = state or Position()

    def _requests(self) -> Iterator[Request]:
        local = self.global_batch_size // self.rank.world_size
        first = self.rank.rank * local
        state = Position(self.state.epoch, self.state.position)
        while True:
            _wrap(state, self.global_batch_size, self.dataset.manifest.num_samples)
            yield Request(state.epoch, state.position, self.global_batch_size, first, first + local)
            state.position += self.global_batch_size

    def __iter__(self) -> Iterator[Batch]:
        for batch in _serve(self.dataset, self._requests(), self.workers, self.pin_memory):
            _wrap(self.state, self.global_batch_size, self.dataset.manifest.num_samples)
            self.state.position += self.global_batch_size
            yield batch


def _wrap(state: Position, global_batch_size: int, num_samples: int) -> None:
    if state.position + global_batch_size > num_samples:
        state.epoch, state.position = state.epoch + 1, 0


def evaluation_batches(dataset: ShardDataset, batch_size: int, rank: Rank, workers: int = 0) -> Iterator[Batch]:
    """Every sample once with all of its captions, in the manifest's order, dealt to the ranks in blocks.

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
    requests = [Request(None, a, b - a, 0, b - a) for a, b in pairwise(edges)]
    return _serve(dataset, requests, workers, False)
