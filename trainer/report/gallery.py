"""Queries of a split with their five nearest items: the best, some at random, the worst."""

from dataclasses import dataclass

import numpy as np
import torch

from trainer.report.contest import Contest

TOP = 5
SHOWN = 4
"""Queries of each kind."""


@dataclass(frozen=True)
class Hit:
    """One retrieved item."""

    item: int
    score: float
    right: bool


@dataclass(frozen=True)
class Query:
    """A query with its nearest items, and its best right one where that is not among them."""

    query: int
    rank: int
    """From 1, of the best right item, its other right ones left aside."""
    hits: list[Hit]
    missed: Hit | None


@dataclass(frozen=True)
class Gallery:
    """Queries of one direction; none stands in two lists, and none shows an image twice in one."""

    best: list[Query]
    drawn: list[Query]
    worst: list[Query]


def gallery(
    queries: torch.Tensor,
    items: torch.Tensor,
    query_image: torch.Tensor,
    item_image: torch.Tensor,
    found: Contest,
    shown: int = SHOWN,
    seed: int = 0,
) -> Gallery:
    """`shown` queries of each kind.

    The best are those where the right item wins by most, the worst those where it stands farthest down and, of
    these, loses by most (ours). Arguments as in `trainer.report.contest.contest`, which gave `found`.
    """
    rank, margin = found.rank.cpu().numpy(), found.margin.cpu().numpy()
    taken: set[int] = set()

    def take(order: np.ndarray) -> list[Query]:
        places: list[int] = []
        images: set[int] = set()
        for place in order.tolist():
            image = int(query_image[found.query[place]])
            if len(places) < shown and place not in taken and image not in images:
                places.append(place)
                images.add(image)
        taken.update(places)
        return [_query(place, queries, items, query_image, item_image, found) for place in places]

    best = take(np.lexsort((-margin, rank)))
    worst = take(np.lexsort((margin, -rank)))
    return Gallery(best, take(np.random.default_rng(seed).permutation(len(rank))), worst)


def _query(
    place: int,
    queries: torch.Tensor,
    items: torch.Tensor,
    query_image: torch.Tensor,
    item_image: torch.Tensor,
    found: Contest,
) -> Query:
    query = int(found.query[place])
    own = int(query_image[query])
    scores, rows = (items @ queries[query]).topk(min(TOP, len(items)))
    hits = [
        Hit(row, score, int(item_image[row]) == own)
        for row, score in zip(rows.tolist(), scores.tolist(), strict=True)
    ]
    truth = Hit(int(found.right[place]), float(found.right_score[place]), True)
    return Query(query, int(found.rank[place]), hits, None if any(hit.right for hit in hits) else truth)
