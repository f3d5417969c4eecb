"""L_proto: images and texts predict each other's prototypes."""

import torch
import torch.nn.functional as F

from model.sinkhorn import sinkhorn


def prototype_loss(
    image_scores: torch.Tensor,
    text_scores: torch.Tensor,
    valid: torch.Tensor,
    temperature: float,
    epsilon: float,
    iterations: int,
) -> torch.Tensor:
    """`-sum_k Q_text[k] log softmax(image_scores / temperature)_k` and its mirror, added: (b,), 0 where not valid.

    AAHR's prototype contrast (arXiv 2507.09256), with the swapped prediction of SwAV (arXiv 2006.09882,
    eq. 2). Each modality's assignments Q are `sinkhorn`'s, over the global batch and without gradient.
    All ranks call it together.

    Args:
        image_scores: (b, P) cosines of image embeddings and prototypes.
        text_scores: (b, P) of the texts of the same pairs.
        valid: (b,) bool, False for pairs that only fill a batch.
        temperature: of the predictions.
        epsilon: of the assignments.
        iterations: of Sinkhorn-Knopp.
    """
    dtype = torch.promote_types(image_scores.dtype, torch.float32)
    scores = torch.stack([image_scores, text_scores]).to(dtype)
    assignments = sinkhorn(scores, valid, epsilon, iterations)
    predictions = F.log_softmax(scores / temperature, dim=-1)
    return -(assignments.flip(0) * predictions).sum(dim=(0, 2))
