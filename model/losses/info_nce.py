"""InfoNCE with any number of keys (van den Oord et al., arXiv 1807.03748)."""

from collections.abc import Sequence

import torch

from model.losses.tiles import Keys, KeyStream, full_precision, logsumexp_over_keys


def info_nce(
    anchors: torch.Tensor,
    ids: torch.Tensor,
    positives: torch.Tensor,
    keys: Sequence[Keys | KeyStream],
    scale: torch.Tensor | float,
    targets: torch.Tensor | None = None,
) -> torch.Tensor:
    """`-log(exp(scale s+) / (exp(scale s+) + sum_j exp(scale s_j)))`, one direction: (b,), one value an anchor.

    The sum runs over the keys of other ids, so the positive counts once, also where its own row is among the keys.
    CLIP's loss (arXiv 2103.00020) with the gathered batch as keys; momentum contrast (arXiv 1911.05722, eq. 1) with
    a queue. Exact gradients to all vectors and to `scale`; memory for tiles of the logits alone (tiles.py).

    Soft targets: `-sum_j q_ij log softmax_j` with weights q_ij that sum to 1 is linear in the logits but for the
    denominator, so all that it needs of them is `targets`, the vectors `sum_j q_ij k_j`, where j runs over the
    positive and the keys. A key of the anchor's id is not in the denominator: give it no weight.

    Args:
        anchors: (b, D) normalised.
        ids: (b,) int64.
        positives: (b, D) normalised, the anchors' matches.
        keys: (K, D) normalised each, with or without gradient, or in blocks.
        scale: the temperature's inverse, a number or a tensor of no dimension.
        targets: (b, D), by default the positives.
    """
    queries = full_precision(anchors) * scale
    positive = (queries * positives).sum(dim=1)
    logits = [positive, *(logsumexp_over_keys(queries, ids, block) for block in keys)]
    denominator = torch.logsumexp(torch.stack(logits), dim=0)
    return denominator - (positive if targets is None else (queries * targets).sum(dim=1))
