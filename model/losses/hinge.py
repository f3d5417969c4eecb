"""L_base: the hinge against negatives of the global batch, one direction."""

import torch

from model.losses.keyed_noise import PairNoise
from model.losses.negatives import distance_weighted_negative, hardest_negative
from model.losses.tiles import HINGE, Keys, full_precision, sum_over_keys


def hinge_loss(
    anchors: torch.Tensor,
    ids: torch.Tensor,
    positives: torch.Tensor,
    keys: Keys,
    margin: float,
    hardest: bool,
) -> torch.Tensor:
    """`[margin + s(anchor, negative) - s(anchor, positive)]_+`: (b,), one value an anchor, 0 without a negative.

    VSE++ (Faghri et al., BMVC 2018, eq. 6) for `hardest`, with the key of the largest similarity as the
    negative; else the mean over all negatives. To be averaged, not summed, over the anchors, so that the
    learning rate does not depend on the batch size (ours).

    Args:
        anchors: (b, D) normalised.
        ids: (b,) int64.
        positives: (b, D) normalised, the anchors' matches.
        keys: (K, D) normalised; those of other ids are the negatives.
        margin: in units of cosine similarity.
    """
    if hardest:
        return _against(*hardest_negative(anchors, ids, keys), anchors, positives, keys, margin)
    anchors = full_precision(anchors)
    shift = margin - (anchors * positives).sum(dim=1)
    return sum_over_keys(anchors, shift, ids, keys, HINGE) / number_of_negatives(ids, keys).clamp(min=1)


def distance_weighted_hinge(
    anchors: torch.Tensor,
    ids: torch.Tensor,
    positives: torch.Tensor,
    keys: Keys,
    margin: float,
    noise: PairNoise,
    cutoff: float,
    dimension: int = 512,
) -> torch.Tensor:
    """`hinge_loss` against one negative an anchor drawn by distance, AAHR's default: (b,).

    The paper sums over the anchors; here too they are to be averaged (ours). See `distance_weighted_negative`.
    """
    drawn = distance_weighted_negative(anchors, ids, keys, noise, cutoff, dimension)
    return _against(*drawn, anchors, positives, keys, margin)


def number_of_negatives(ids: torch.Tensor, keys: Keys) -> torch.Tensor:
    """Valid keys of other ids than each anchor's: (b,) int64, without comparing all pairs."""
    order = keys.ids.argsort()
    valid = torch.nn.functional.pad(keys.valid[order].cumsum(dim=0), (1, 0))
    ordered = keys.ids[order]
    same = valid[torch.searchsorted(ordered, ids, right=True)] - valid[torch.searchsorted(ordered, ids)]
    return valid[-1] - same


def _against(
    row: torch.Tensor,
    exists: torch.Tensor,
    anchors: torch.Tensor,
    positives: torch.Tensor,
    keys: Keys,
    margin: float,
) -> torch.Tensor:
    """The hinge against one chosen key an anchor: only here do negatives get a gradient."""
    anchors = full_precision(anchors)
    difference = (anchors * (full_precision(keys.vectors[row]) - positives)).sum(dim=1)
    return (margin + difference).clamp(min=0).masked_fill(~exists, 0)
