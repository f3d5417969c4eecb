"""The prototype bank: AAHR's learnable prototypes, and how much each is used."""

import torch
import torch.nn.functional as F
from torch import nn

from model.collectives import gather
from model.errors import ModelError

USAGE_DECAY = 0.99
"""Share of the running usage that a step keeps: it speaks of the last few hundred steps."""


class PrototypeBank(nn.Module):
    """P prototypes on the unit sphere, learned by gradient (AAHR, arXiv 2507.09256).

    The record of their use (ours) is in buffers, in integers or made from them: the same on every rank.
    """

    usage: torch.Tensor
    last_used: torch.Tensor

    def __init__(self, count: int, embed_dim: int) -> None:
        """`count` is P. The prototypes start in random directions."""
        super().__init__()
        if count < 1:
            raise ModelError(f"loss.prototypes.count: {count} leaves nothing to compare with; set it to 1 at least")
        self.prototypes = nn.Parameter(F.normalize(torch.randn(count, embed_dim), dim=1))
        self.register_buffer("usage", torch.zeros(count))  # running share of the samples
        self.register_buffer("last_used", torch.zeros(count, dtype=torch.int64))  # step

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """(..., D) of length 1 -> (..., P) cosines, float32 at least."""
        dtype = torch.promote_types(embeddings.dtype, torch.float32)
        return embeddings.to(dtype) @ F.normalize(self.prototypes.to(dtype), dim=1).T

    @torch.no_grad()
    def record(self, counts: torch.Tensor, step: int) -> None:
        """Note the (P,) `nearest_counts` of a step, after it was applied."""
        self.usage.lerp_((counts / counts.sum().clamp(min=1)).to(self.usage.dtype), 1 - USAGE_DECAY)
        self.last_used.masked_fill_(counts > 0, step)

    @torch.no_grad()
    def renew(self, rows: torch.Tensor, step: int) -> None:
        """Note that the prototypes of (P,) bool `rows` were set anew at a step: they are not dead."""
        self.last_used.masked_fill_(rows, step)

    def dead(self, step: int, reseed_after: int) -> torch.Tensor:
        """(P,) bool, True where no sample was nearest in the last `reseed_after` steps."""
        return step - self.last_used >= reseed_after

    def usage_entropy(self) -> torch.Tensor:
        """() entropy of the running usage in nats: log P where all are used alike, 0 where one has all."""
        share = self.usage / self.usage.sum().clamp(min=torch.finfo(self.usage.dtype).tiny)
        entropy: torch.Tensor = torch.special.entr(share).sum()
        return entropy


@torch.no_grad()
def nearest_counts(scores: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """How many valid samples of the global batch have each prototype as their nearest: (P,) int64.

    By the plain cosine and not by Sinkhorn-Knopp, which gives every prototype its share, however far it lies
    (ours). All ranks call it together.

    Args:
        scores: (..., b, P).
        valid: (b,) bool.
    """
    counts = valid.new_zeros(scores.shape[-1], dtype=torch.int64)
    nearest = scores.argmax(dim=-1)
    counts.index_add_(0, nearest.flatten(), valid.expand_as(nearest).flatten().to(torch.int64))
    return gather(counts.unsqueeze(0)).sum(dim=0)
