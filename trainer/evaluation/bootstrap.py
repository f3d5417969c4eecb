"""Confidence intervals: how far a result would move with other images of the same kind.

Images are drawn with replacement, each with its captions; what they are searched among stays as it is. The interval
is that of percentiles (Efron, "Bootstrap methods: another look at the jackknife", 1979).
"""

import numpy as np
import numpy.typing as npt

from trainer.evaluation.measures import Scores

RESAMPLES = 1000
LEVEL = 95.0
"""Percent of the resamples that lie within."""
SEED = 0
DRAWS = 2**22
"""Images drawn at once: memory does not grow with the number of resamples."""

Group = tuple[npt.NDArray[np.int64], Scores]
"""(Q,) the image that each query belongs to, and (Q, M) its scores."""


def intervals(groups: list[Group]) -> tuple[list[Scores], npt.NDArray[np.float64]]:
    """For each group, (M, 2) lower and upper ends of the means; and those of the sum of all means, (2,).

    The same images are drawn for all groups. The same scores give the same intervals.
    """
    units, owner = np.unique(np.concatenate([images for images, _scores in groups]), return_inverse=True)
    sums, start = [], 0
    for images, scores in groups:
        rows = owner[start : start + len(images)]
        start += len(images)
        columns = [np.bincount(rows, column, len(units)) for column in (*scores.T, np.ones(len(rows)))]
        sums.append(np.stack(columns, axis=1))
    table = np.concatenate(sums, axis=1)
    generator = np.random.default_rng(SEED)
    size = max(1, DRAWS // len(units))
    drawn = []
    for first in range(0, RESAMPLES, size):
        count = min(size, RESAMPLES - first)
        times = [
            np.bincount(row, minlength=len(units))
            for row in generator.integers(len(units), size=(count, len(units)))
        ]
        drawn.append(np.stack(times) @ table)
    totals = np.concatenate(drawn)
    means, column = [], 0
    for one in sums:
        part = totals[:, column : column + one.shape[1]]
        column += one.shape[1]
        # a resample may hold no image that is a query in this direction
        means.append(part[:, :-1] / np.where(part[:, -1:] > 0, part[:, -1:], np.nan))
    ends = [(100 - LEVEL) / 2, (100 + LEVEL) / 2]
    total = np.concatenate(means, axis=1).sum(axis=1)
    return [np.nanpercentile(mean, ends, axis=0).T for mean in means], np.nanpercentile(total, ends)
