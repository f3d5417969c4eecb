"""Where the right items of each query stand in its ranking, exactly, in blocks of queries.

The tie rule: among equal float32 similarities the wrong items come first, and a similarity that is no number counts
as larger than any other. So a place is never better than that of any way to sort, and a model that gives all pairs
one score is ranked last. Where no two similarities are equal, the places are those of `argsort`.

Nothing is sorted: the place of an item is the number of items that score at least as high.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from trainer.distributed import World
from trainer.evaluation.similarities import Similarities

NOWHERE = np.iinfo(np.int64).max
"""The place of a right item that there is not."""

Rows = npt.NDArray[np.int64]
Places = npt.NDArray[np.int64]
"""(Q, J) 0-based, ascending in a row; `NOWHERE` fills the rows of queries with fewer right items."""


@dataclass(frozen=True)
class Task:
    """Queries with their right items, ranked within a range of the gallery."""

    queries: Rows
    """(Q,) ascending: rows of the query embeddings."""
    right: Rows
    """(Q, R) rows of the gallery within the range, at least one a query; -1 fills."""
    first: int
    last: int
    """The range is `first .. last - 1`."""
    every: bool = False
    """Whether the places of all right items are wanted (J = R), or that of the best one (J = 1)."""


def group(members: Rows) -> tuple[Rows, Rows]:
    """(C,) the group of each item -> (Q,) the groups that have any, ascending, and (Q, R) their items, -1 fills."""
    groups, counts = np.unique(members, return_counts=True)
    order = np.argsort(members, kind="stable")
    right = np.full((len(groups), counts.max(initial=0)), -1)
    row = np.repeat(np.arange(len(groups)), counts)
    right[row, np.arange(len(order)) - (np.cumsum(counts) - counts)[row]] = order
    return groups, right


def places(
    similarities: Similarities, tasks: Sequence[Task], *, by_text: bool, world: World | None = None
) -> list[Places]:
    """The places of each task's right items; captions are the queries where `by_text`, else images.

    With more than one process, each takes its share of the blocks where there are many, and all return the whole;
    the blocks, and so the numbers, are those of one process.
    """
    world = world or World()
    is_shared = world.size > 1 and not similarities.is_held
    found = [np.zeros((len(task.queries), task.right.shape[1] if task.every else 1), np.int64) for task in tasks]
    total = similarities.num_texts if by_text else similarities.num_images
    size = similarities.block_size(by_text)
    for number, start in enumerate(range(0, total, size)):
        stop = min(start + size, total)
        shares = [_share(task, start, stop) for task in tasks]
        if (is_shared and number % world.size != world.rank) or not any(low < high for low, high in shares):
            continue
        scores = similarities.block(by_text, start, stop).cpu().numpy()
        for task, (low, high), into in zip(tasks, shares, found, strict=True):
            if low < high:
                own = scores[_slice(task.queries[low:high] - start), task.first : task.last]
                into[low:high] = _places(own, task.right[low:high] - task.first, task.every)
    return [_sum_over_ranks(one, similarities.device) for one in found] if is_shared else found


def _sum_over_ranks(found: Places, device: torch.device) -> Places:
    whole = torch.from_numpy(found).to(device)
    dist.all_reduce(whole)
    return whole.cpu().numpy()


def _share(task: Task, start: int, stop: int) -> tuple[int, int]:
    low, high = np.searchsorted(task.queries, [start, stop]).tolist()
    return low, high


def _slice(rows: Rows) -> slice | Rows:
    """Ascending rows; without gaps they need no copy."""
    first, last = int(rows[0]), int(rows[-1])
    return slice(first, last + 1) if last - first == len(rows) - 1 else rows


def _places(scores: npt.NDArray[np.float32], right: Rows, every: bool) -> Places:
    """(B, N) similarities and (B, R) columns, below 0 where there is none -> (B, J) places."""
    held = right >= 0
    own = np.take_along_axis(scores, right.clip(min=0), axis=1)
    levels = -np.sort(-np.where(held & ~np.isnan(own), own, -np.inf), axis=1)[:, : None if every else 1]
    reaches = ~(np.expand_dims(own, 2) < np.expand_dims(levels, 1))  # (B, R, J)
    right_above = (np.expand_dims(held, 2) & reaches).sum(axis=1)
    found = np.full(levels.shape, NOWHERE)
    for query, count in enumerate(held.sum(axis=1)):
        # a row at a time stays in the processor's cache: ten times as fast as whole blocks
        row = scores[query]
        for place in range(min(count, len(levels[query]))):
            # not what scores at least as high: a similarity that is no number counts against the model, too
            above = len(row) - np.count_nonzero(row < levels[query, place])
            found[query, place] = place + above - right_above[query, place]
    return found
