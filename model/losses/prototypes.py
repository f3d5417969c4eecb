"""L_proto: images and texts predict each other's prototypes."""

import torch
import torch.nn.functional as F


def prototype_loss(scores: torch.Tensor, assignments: torch.Tensor, temperature: float) -> torch.Tensor:
    """`-sum_k Q_text[k] log softmax(image scores / temperature)_k` and its mirror, added: (b,), 0 where Q is 0.

    AAHR's prototype contrast (arXiv 2507.09256), with the swapped prediction of SwAV (arXiv 2006.09882, eq. 2).

    Args:
        scores: (2, b, P) cosines of image and of text embeddings with the prototypes.
        assignments: (2, b, P) of the same, by `model.sinkhorn` over the global batch, without gradient.
        temperature: of the predictions.
    """
    predictions = F.log_softmax(scores / temperature, dim=-1)
    return -(assignments.flip(0) * predictions).sum(dim=(0, 2))
