"""The graph of concepts that a graph convolution runs on, from how often concepts stand in one caption.

As in CVSE (Wang et al., "Consensus-aware visual-semantic embedding", ECCV 2020), section 3.2. Two things are
ours: a concept does not co-occur with itself, since the identity is added apart, and a concept that none
leads to keeps a column of zeros instead of a division by zero.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class GraphOptions:
    """How counts become edges."""

    s: float = 5.0
    u: float = 0.02
    threshold: float = 0.3
    """Of the scaled confidence B from which on there is an edge."""
    weight: float = 0.25
    """What the edges into a concept sum to, against 1 for itself."""


def adjacency(
    counts: npt.NDArray[np.int64], co_occurrence: npt.NDArray[np.int64], options: GraphOptions
) -> npt.NDArray[np.float64]:
    """Counts (q,) and co-occurrence (q, q) over captions -> the symmetrically normalised adjacency (q, q).

    `P_ij = E_ij / N_i`, `B_ij = s^(P_ij - u) - s^(-u)`, `H_ij = [B_ij >= threshold]`,
    `A = weight * H_ij / sum_i H_ij + I`, result `D^-1/2 A^T D^-1/2` with `D_i = sum_j A_ij`: a concept gathers
    from those that lead to it. The diagonal of `co_occurrence` is not looked at.
    """
    probability = co_occurrence / np.maximum(counts, 1)[:, None]
    confidence = options.s ** (probability - options.u) - options.s**-options.u
    edges = confidence >= options.threshold
    np.fill_diagonal(edges, False)
    weighted = options.weight * edges / np.maximum(edges.sum(axis=0), 1) + np.eye(len(counts))
    scale = weighted.sum(axis=1) ** -0.5
    normalised: npt.NDArray[np.float64] = scale[:, None] * weighted.T * scale[None, :]
    return normalised
