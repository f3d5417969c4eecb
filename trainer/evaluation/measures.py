"""What a query scores, from the places of its right items; percent."""

import numpy as np
import numpy.typing as npt

from trainer.evaluation.ranks import Places

RANKS = (1, 5, 10)
RECALLS = tuple(f"r{k}" for k in RANKS)
OF_ALL = ("map_at_r", "r_precision", "r1")

Scores = npt.NDArray[np.float64]
"""(Q, M): a column a measure."""


def recalls(places: Places) -> Scores:
    """Recall at 1, 5 and 10: whether the best right item is among the first K."""
    return np.where(places[:, :1] < np.array(RANKS), 100.0, 0.0)


def precisions(places: Places, relevant: npt.NDArray[np.int64]) -> Scores:
    """mAP@R, R-Precision and recall at 1 of queries with `relevant` right items each, R.

    R-Precision is the share of right items among the first R. mAP@R is the mean over the first R places of the
    precision up to there, taken as 0 where the item is wrong (Musgrave, Belongie, Lim, "A metric learning reality
    check", ECCV 2020). Right items that the gallery lacks count in R.
    """
    within = places < relevant[:, None]
    precision = (1 + np.arange(places.shape[1])) / (1.0 + places)
    mean = np.where(within, precision, 0.0).sum(axis=1) / relevant
    return 100.0 * np.stack([mean, within.sum(axis=1) / relevant, places[:, 0] < 1], axis=1)
