"""SigLIP's loss: every pair of the global batch is a decision of its own (Zhai et al., arXiv 2303.15343)."""

import torch
from torch.nn.functional import softplus

from model.losses.tiles import SOFTPLUS, Keys, full_precision, sum_over_keys


def sigmoid_loss(
    anchors: torch.Tensor,
    ids: torch.Tensor,
    positives: torch.Tensor,
    keys: Keys,
    scale: torch.Tensor | float,
    bias: torch.Tensor | float,
) -> torch.Tensor:
    """`-log sigmoid(scale s+ + bias) - sum_j log sigmoid(-(scale s_j + bias))`: (b,), one value an anchor.

    The paper's algorithm 1: summed over the pairs of an anchor, to be averaged over the anchors. One direction is
    the whole loss, since each pair is in it. Pairs of one id other than the match itself are left out (ours).
    Exact gradients to all vectors, `scale` and `bias`.

    Args:
        anchors: (b, D) normalised.
        ids: (b,) int64.
        positives: (b, D) normalised, the anchors' matches.
        keys: (K, D) normalised, the other modality of the global batch.
        scale: the temperature's inverse, a number or a tensor of no dimension.
        bias: likewise.
    """
    queries = full_precision(anchors) * scale
    shift = bias + queries.new_zeros(len(queries))
    match = softplus(-((queries * positives).sum(dim=1) + shift), threshold=40)
    return match + sum_over_keys(queries, shift, ids, keys, SOFTPLUS)
