"""Rows of one logical table shared out over the ranks in consecutive spans, and read back block by block.

Any number of rows on any number of ranks: a span is `ceil(M / world_size)` rows, the last ones are shorter or
empty. All ranks read together.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist

from model.collectives import gather, rank, sum_for_owners, world_size
from model.losses.pairs import Pairs
from model.losses.tiles import Keys


def span(length: int, number: int) -> slice:
    """The rows that a rank holds."""
    size = -(-length // world_size())
    return slice(min(number * size, length), min((number + 1) * size, length))


def in_turn(own: torch.Tensor, length: int) -> Iterator[tuple[slice, torch.Tensor]]:
    """Every rank's rows on every rank, one rank after another, the next one's received meanwhile.

    Each rank passes its (n, C) of the `length` rows. Two spans are held beside the own one, never all rows.
    """
    if world_size() == 1:
        yield slice(0, length), own
        return
    own = own.contiguous()
    parts = [(number, rows) for number in range(world_size()) if (rows := span(length, number)).stop > rows.start]

    def receive(number: int, rows: slice) -> tuple[slice, torch.Tensor, dist.Work]:
        block = own if number == rank() else own.new_empty((rows.stop - rows.start, own.shape[1]))
        work = dist.broadcast(block, src=number, async_op=True)
        assert work is not None, "this rank is in the group"
        return rows, block, work

    coming = receive(*parts[0])
    for following in [*parts[1:], None]:
        rows, block, work = coming
        if following:
            coming = receive(*following)
        work.wait()
        yield rows, block


def on_first(own: torch.Tensor, length: int) -> torch.Tensor | None:
    """All (length, C) rows in the memory of rank 0's host; None on the others."""
    whole = own.new_empty((length, own.shape[1]), device="cpu") if rank() == 0 else None
    for rows, block in in_turn(own, length):
        if whole is not None:
            whole[rows] = block.cpu()
    return whole


@dataclass(frozen=True)
class ShardedKeys:
    """One side of `ShardedPairs`, for `model.losses.info_nce`."""

    vectors: torch.Tensor
    ids: torch.Tensor
    valid: torch.Tensor

    def blocks(self) -> Iterator[Keys]:
        """All keys once."""
        for rows, vectors in in_turn(self.vectors, len(self.ids)):
            yield Keys(vectors, self.ids[rows], self.valid[rows])


@dataclass(frozen=True)
class ShardedPairs:
    """M pairs whose vectors lie on all ranks: `model.losses.pairs.Slots`."""

    images: torch.Tensor
    """(n, D) of this rank's span."""
    texts: torch.Tensor
    """(n, D) of the same pairs."""
    ids: torch.Tensor
    """(M,) of all pairs."""
    valid: torch.Tensor
    """(M,) of all pairs."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def image_keys(self) -> ShardedKeys:
        return ShardedKeys(self.images, self.ids, self.valid)

    @property
    def text_keys(self) -> ShardedKeys:
        return ShardedKeys(self.texts, self.ids, self.valid)

    def blocks(self) -> Iterator[tuple[int, Pairs]]:
        """As of `Slots`; one exchange a rank."""
        for rows, both in in_turn(torch.cat([self.images, self.texts], dim=1), len(self)):
            images, texts = both.chunk(2, dim=1)
            yield rows.start, Pairs(images, texts, self.ids[rows], self.valid[rows])

    def look_up(self, images: torch.Tensor, texts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As of `Slots`; every rank fills in what it holds of what all look for, in two exchanges."""
        wanted = gather(torch.stack([images, texts], dim=1))
        own = span(len(self), rank())
        sides = []
        for vectors, places in zip((self.images, self.texts), wanted.unbind(dim=1), strict=True):
            here = (places >= own.start) & (places < own.stop)
            row = torch.where(here, places - own.start, 0)
            found = vectors.index_select(0, row) if len(vectors) else vectors.new_zeros(len(row), vectors.shape[1])
            sides.append(torch.where(here.unsqueeze(1), found, 0))
        found_images, found_texts = sum_for_owners(sides)
        return found_images, found_texts
