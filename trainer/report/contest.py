"""Each query's best right item against its best wrong one: what galleries and confusions are chosen by."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

BLOCK = 2**24
"""Similarities looked at once: memory does not grow with the product of queries and gallery."""


@dataclass(frozen=True)
class Contest:
    """Q queries that have a right item at all, in their order."""

    query: torch.Tensor
    """(Q,) int64 row."""
    right: torch.Tensor
    """(Q,) int64 row of the best right item."""
    wrong: torch.Tensor
    """(Q,) int64 row of the best wrong item; of no meaning where there is none."""
    right_score: torch.Tensor
    """(Q,) cosine."""
    wrong_score: torch.Tensor
    """(Q,) cosine, minus infinity where there is none."""
    rank: torch.Tensor
    """(Q,) int64 from 1, of the best right item; ties count against it, as in `trainer.evaluation.ranks`."""

    @property
    def margin(self) -> torch.Tensor:
        """(Q,) by how much the right one wins."""
        return self.right_score - self.wrong_score


def blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of the rows of a matrix, `BLOCK` entries each at most, one row at least."""
    size = max(1, BLOCK // max(1, columns))
    return (slice(first, min(first + size, rows)) for first in range(0, rows, size))


@torch.no_grad()
def contest(
    queries: torch.Tensor, gallery: torch.Tensor, query_image: torch.Tensor, gallery_image: torch.Tensor
) -> Contest:
    """(Q, D) queries among (G, D) items; right are those of the same image, (Q,) and (G,) int64."""
    found: list[tuple[torch.Tensor, ...]] = []
    for rows in blocks(len(queries), len(gallery)):
        scores = queries[rows] @ gallery.T
        own = query_image[rows, None] == gallery_image
        right_score, right = scores.masked_fill(~own, -torch.inf).max(dim=1)
        others = scores.masked_fill_(own, -torch.inf)
        wrong_score, wrong = others.max(dim=1)
        rank = 1 + (others >= right_score[:, None]).sum(dim=1)
        has_right = own.any(dim=1)
        query = torch.arange(rows.start, rows.stop, device=queries.device)
        found.append(tuple(one[has_right] for one in (query, right, wrong, right_score, wrong_score, rank)))
    return Contest(*(torch.cat(part) for part in zip(*found, strict=True)))
