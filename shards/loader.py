"""Batches for one rank, in the canonical order.

Every rank computes which samples are its own; nothing is exchanged, so no rank ever waits for another, with
fewer shards than workers and with uneven shards alike. Loader workers fetch whole batches in turn, so their
number does not change what is read.
"""

import atexit
import os
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from multiprocessing import active_children
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader, Dataset

from shards.batch import Batch
from shards.errors import DataError
from shards.signals import held
from shards.training import Request, TrainDataset
from shards.worker_memory import PREFETCH

LastBatch = Literal["drop", "pad"]


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


class _ErrorsAsValues(Dataset[Any]):
    """Hands a `DataError` over in place of the batch: raised in a worker, torch would bury it in a traceback."""

    def __init__(self, dataset: Dataset[Batch]) -> None:
        self.dataset = dataset

    def __getitem__(self, request: Any) -> Batch | DataError:
        try:
            return self.dataset[request]
        except DataError as error:
            return error


def _begin(_worker: int) -> None:
    torch.set_num_threads(1)  # a worker is a thread of its own; more would fight over the cores
    # a worker that is let go may still be handing a batch over, in a thread of torch's: were the interpreter taken
    # down around it, the process would now and then abort, which is told as an error of the run that has ended
    atexit.register(os._exit, 0)


def serve(dataset: Dataset[Batch], requests: Iterable[Any], workers: int, pin: bool = False) -> Iterator[Batch]:
    """The batches that are asked for, in order, made by `workers` processes, or by this one where it is 0."""
    loader = DataLoader(
        _ErrorsAsValues(dataset),
        sampler=requests,  # requests take the place of indices
        batch_size=None,
        num_workers=workers,
        pin_memory=pin,
        prefetch_factor=PREFETCH if workers else None,
        worker_init_fn=_begin if workers else None,
        # not fork: the training process holds threads of its collectives
        multiprocessing_context="spawn" if workers else None,
    )
    batches: Iterator[Batch | DataError] = iter(())
    try:
        # workers answer no signal: the training process ends them once it has
        with held() if workers else nullcontext():
            batches = iter(loader)
        while True:
            try:
                batch = next(batches, None)
            except RuntimeError as error:
                # torch's own words for a worker that is gone; an error raised in one begins with "Caught"
                if not str(error).startswith("DataLoader worker (pid"):
                    raise
                raise DataError(
                    f"a loader worker ended unexpectedly ({str(error).splitlines()[0]}); if it was short of "
                    "memory, lower data.workers"
                ) from None
            if batch is None:
                return
            if isinstance(batch, DataError):
                raise batch
            yield batch
    except KeyboardInterrupt:
        # a worker that is still starting would fail on what is taken down here, and say so at length
        for worker in active_children() if workers else ():
            worker.kill()
        raise
    finally:
        # now, while the workers' queues stand: the garbage collector takes these first, and a worker that still
        # starts would fail on them. By name: an error's traceback may keep the iterator, and torch, which watches
        # its workers as long, would tell of their end in the midst of something else
        started = getattr(batches, "_workers", [])
        getattr(batches, "_shutdown_workers", lambda: None)()
        for worker in started:  # one that hangs in a read, and holds the signal that torch has sent it
            if worker.is_alive():
                worker.kill()


def steps_per_epoch(num_visits: int, global_batch_size: int, last_batch: LastBatch) -> int:
    """Global batches in an epoch of `num_visits`."""
    return num_visits // global_batch_size if last_batch == "drop" else -(-num_visits // global_batch_size)


class TrainLoader:
    """An endless stream of this rank's part of each global batch, in the canonical order, epoch after epoch.

    Every visit of an epoch is made once. What does not fill a last batch is dropped (fewer visits than one
    batch, others in every epoch), or, with `last_batch` "pad", the batch is filled from the epoch's start with
    samples whose `Batch.valid` is False. `state` is the position after the last batch that was handed out,
    whatever the workers have fetched ahead.
    """

    def __init__(
        self,
        dataset: TrainDataset,
        global_batch_size: int,
        rank: Rank,
        workers: int = 0,
        state: Position | None = None,
        last_batch: LastBatch = "drop",
        pin_memory: bool = False,
    ) -> None:
        if global_batch_size % rank.world_size:
            raise DataError(
                f"a global batch of {global_batch_size} does not divide among {rank.world_size} processes"
            )
        total = dataset.training_set.num_visits
        if global_batch_size > total:
            raise DataError(
                f"{dataset.training_set.name}: {total:,} samples do not fill one global batch of "
                f"{global_batch_size:,}"
            )
        self.dataset, self.global_batch_size, self.rank = dataset, global_batch_size, rank
        self.workers, self.last_batch, self.pin_memory = workers, last_batch, pin_memory
        self.state = state or Position()

    def state_dict(self) -> dict[str, int]:
        """The position, all that is needed to go on: at any world size and number of workers."""
        return asdict(self.state)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a position; to be called before iterating. Takes no time: nothing is replayed."""
        self.state = Position(**state)

    def _step(self, state: Position) -> Position:
        """Where the batch that is next at `state` begins."""
        needed = self.global_batch_size if self.last_batch == "drop" else 1
        full = state.position + needed <= self.dataset.training_set.num_visits
        return Position(state.epoch, state.position) if full else Position(state.epoch + 1, 0)

    def _requests(self) -> Iterator[Request]:
        local = self.global_batch_size // self.rank.world_size
        first = self.rank.rank * local
        state = self.state
        while True:
            state = self._step(state)
            yield Request(state.epoch, state.position, self.global_batch_size, first, first + local)
            state.position += self.global_batch_size

    def __iter__(self) -> Iterator[Batch]:
        for batch in serve(self.dataset, self._requests(), self.workers, self.pin_memory):
            self.state = self._step(self.state)
            self.state.position += self.global_batch_size
            yield batch
