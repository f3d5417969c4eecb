"""L_base: the bidirectional hinge with negatives from the global batch."""

import torch


def hinge_loss(
    anchors: torch.Tensor,
    positives: torch.Tensor,
    candidates: torch.Tensor,
    same_image: torch.Tensor,
    margin: float,
    hardest: bool,
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """`[margin + s(anchor, negative) - s(anchor, positive)]_+`, averaged over the anchors, one direction.

    VSE++ (Faghri et al., BMVC 2018, eq. 6) for `hardest`, with the candidate of the largest similarity as
    the negative; else the mean over all negatives. Averaged, not summed, over the anchors, so that the
    learning rate does not depend on the batch size (ours).

    Args:
        anchors: (b, D) normalised.
        positives: (b, D) normalised, the anchors' matches.
        candidates: (G, D) normalised.
        same_image: (b, G) bool, True where a candidate is no negative of the anchor.
        margin: in units of cosine similarity.
        weight: (b,) of each anchor in the mean, 1 but where samples only fill a batch.
    """
    positive = (anchors * positives).sum(dim=-1)
    violation = (margin + anchors @ candidates.T - positive.unsqueeze(1)).clamp(min=0)
    violation = violation.masked_fill(same_image, 0)
    negatives = (~same_image).sum(dim=1).clamp(min=1)
    per_anchor = violation.amax(dim=1) if hardest else violation.sum(dim=1) / negatives
    return (per_anchor if weight is None else per_anchor * weight).mean()
