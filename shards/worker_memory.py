"""Shared memory that the batches of a loader worker take turns in.

Fresh shared memory for every batch is what a worker costs beside its samples: the kernel clears each page of it,
and takes it back when the batch is done with.
"""

import errno
import os
from collections import defaultdict
from collections.abc import Sequence
from math import prod

import torch
from torch.utils.data import get_worker_info

from shards.errors import DataError

PREFETCH = 4
"""Batches that a worker makes ahead of the one that was taken from it last."""
IN_USE = 2
"""Batches of a worker, the one taken last among them, that stay as they are while it makes further ones."""


def _shared(size: int) -> torch.Tensor:
    piece = torch.empty(size, dtype=torch.uint8)
    try:
        piece.share_memory_()
    except RuntimeError as error:
        if os.strerror(errno.ENOSPC) not in str(error):
            raise
        raise DataError(
            f"/dev/shm is full: each loader worker keeps {PREFETCH + IN_USE} batches of {size / 1e6:,.0f} MB "
            "there; enlarge it (containers: --shm-size), or lower data.workers"
        ) from None
    return piece


class Turns:
    """Pieces of shared memory, given out one after the other, over and over; they grow with what is asked for."""

    def __init__(self) -> None:
        self._pieces = [torch.empty(0, dtype=torch.uint8) for _ in range(PREFETCH + IN_USE)]
        self._turn = 0

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised tensor in the next piece. Raises `DataError` where shared memory is full."""
        size = prod(shape) * dtype.itemsize
        if len(self._pieces[self._turn]) < size:
            self._pieces[self._turn] = _shared(size)
        piece = self._pieces[self._turn][:size]
        self._turn = (self._turn + 1) % len(self._pieces)
        return piece.view(dtype).view(*shape)


_turns: defaultdict[str, Turns] = defaultdict(Turns)


def batch_memory(part: str, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """An uninitialised tensor for `part` of a batch, once a batch; in a worker in shared memory, in turn."""
    return torch.empty(*shape, dtype=dtype) if get_worker_info() is None else _turns[part].empty(shape, dtype)
