"""The protocols of a split, measured in one sweep over the similarities of each direction."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from trainer.distributed import World
from trainer.evaluation.bootstrap import intervals
from trainer.evaluation.measures import RECALLS, Scores, precisions, recalls
from trainer.evaluation.protocol import Applicable, Direction, Protocol
from trainer.evaluation.ranks import Places, places
from trainer.evaluation.similarities import Similarities

Ends = tuple[float, float]
"""Of a confidence interval."""


@dataclass(frozen=True)
class OneWay:
    """One direction of a protocol; percent."""

    values: dict[str, float]
    """"r1", "r5", "r10", or "map_at_r", "r_precision", "r1"."""
    intervals: dict[str, Ends]
    """95 %."""
    median_rank: float
    """Of the best right item, counted from 1; over folds the mean of their medians."""
    mean_rank: float
    num_queries: int

    def as_dict(self) -> dict[str, object]:
        ends = {name: list(ends) for name, ends in self.intervals.items()}
        ranks = {"median_rank": self.median_rank, "mean_rank": self.mean_rank, "queries": self.num_queries}
        return {**self.values, "interval": ends, **ranks}


@dataclass(frozen=True)
class Measured:
    """The results of one protocol."""

    key: str
    title: str
    i2t: OneWay
    t2i: OneWay
    rsum_interval: Ends | None
    """None where there is no rSum."""

    @property
    def rsum(self) -> float | None:
        """Sum of the six recalls; None for measures that nobody sums."""
        if tuple(self.i2t.values) != RECALLS:
            return None
        return sum(self.i2t.values.values()) + sum(self.t2i.values.values())

    def as_dict(self) -> dict[str, object]:
        row: dict[str, object] = {"key": self.key, "title": self.title}
        row |= {"i2t": self.i2t.as_dict(), "t2i": self.t2i.as_dict()}
        if self.rsum is not None and self.rsum_interval is not None:
            row |= {"rsum": self.rsum, "rsum_interval": list(self.rsum_interval)}
        return row


def measure(
    images: Sequence[torch.Tensor], texts: Sequence[torch.Tensor], what: Applicable, world: World | None = None
) -> list[Measured]:
    """Measure every protocol of a split from its embeddings, (N, D_m) and (C, D_m) of each member m of an ensemble.

    All processes of `world` call it together with the same embeddings, and get the same.
    """
    measured = []
    for view in what.views:
        similarities = Similarities(
            [_select(one, view.images) for one in images], [_select(one, view.captions) for one in texts]
        )
        i2t = _places(similarities, [protocol.i2t for protocol in view.protocols], False, world)
        t2i = _places(similarities, [protocol.t2i for protocol in view.protocols], True, world)
        measured += [_measured(protocol, *found) for protocol, *found in zip(view.protocols, i2t, t2i, strict=True)]
    return measured


def _select(rows: torch.Tensor, wanted: np.ndarray | None) -> torch.Tensor:
    # COCO's own order needs no copy
    return (
        rows
        if wanted is None or np.array_equal(wanted, np.arange(len(rows)))
        else rows[torch.from_numpy(wanted).to(rows.device)]
    )


def _places(
    similarities: Similarities, directions: list[Direction], by_text: bool, world: World | None
) -> list[list[Places]]:
    """For each protocol's direction, the places of each of its tasks."""
    tasks = [task for one in directions for task in one.tasks]
    found = iter(places(similarities, tasks, by_text=by_text, world=world))
    return [[next(found) for _task in one.tasks] for one in directions]


def _scores(direction: Direction, found: list[Places]) -> Scores:
    joined = np.concatenate(found)
    return recalls(joined) if direction.relevant is None else precisions(joined, direction.relevant)


def _measured(protocol: Protocol, i2t: list[Places], t2i: list[Places]) -> Measured:
    ways = [(protocol.i2t, i2t), (protocol.t2i, t2i)]
    scores = [_scores(direction, found) for direction, found in ways]
    groups = [(direction.images, one) for (direction, _found), one in zip(ways, scores, strict=True)]
    ends, total = intervals(groups)
    one_way = [
        OneWay(
            # folds have equally many queries, so that this is the mean of their means
            values=dict(zip(protocol.measures, one.mean(axis=0).tolist(), strict=True)),
            intervals={
                name: (low, high) for name, (low, high) in zip(protocol.measures, end.tolist(), strict=True)
            },
            median_rank=float(np.mean([1 + np.median(fold[:, 0]) for fold in found])),
            mean_rank=float(np.mean([1 + np.mean(fold[:, 0]) for fold in found])),
            num_queries=len(one),
        )
        for (_direction, found), one, end in zip(ways, scores, ends, strict=True)
    ]
    sums = (float(total[0]), float(total[1])) if protocol.measures == RECALLS else None
    return Measured(protocol.key, protocol.title, one_way[0], one_way[1], sums)
