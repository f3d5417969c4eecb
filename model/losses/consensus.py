"""The losses of a consensus-aware embedding, put together."""

import torch

from model.config import ConsensusLossConfig


def concept_divergence(log_texts: torch.Tensor, log_images: torch.Tensor) -> torch.Tensor:
    """`KL(text || image)` between the distributions over the concepts of each pair: (b, q), (b, q) -> (b,).

    CVSE (ECCV 2020, section 3.4). The text's distribution knows which concepts the caption names, so the
    image's is drawn to it; the gradient goes to both.
    """
    return (log_texts.exp() * (log_texts - log_images)).sum(dim=-1)


def consensus_loss(
    fused: torch.Tensor,
    instance: torch.Tensor,
    consensus: torch.Tensor,
    divergence: torch.Tensor,
    config: ConsensusLossConfig,
) -> torch.Tensor:
    """The weighted sum of the ranking losses on the three embeddings and of the divergence, each (b,) -> (b,)."""
    return (
        config.fused_weight * fused
        + config.instance_weight * instance
        + config.consensus_weight * consensus
        + config.divergence_weight * divergence
    )
