"""The prototype bank: AAHR's prototypes, learned or averaged, and how much each is used."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from model.errors import ModelError

USAGE_DECAY = 0.99
"""Share of the running usage that a step keeps: it speaks of the last few hundred steps."""


class PrototypeBank(nn.Module):
    """P prototypes on the unit sphere, learned by gradient (AAHR, arXiv 2507.09256) or averaged (ours).

    Averaged ones are a buffer, so no optimiser knows of them. The record of use (ours) is in buffers, in integers
    or made from them: the same on every rank.
    """

    prototypes: torch.Tensor
    usage: torch.Tensor
    last_used: torch.Tensor

    def __init__(self, count: int, embed_dim: int, decay: float | None = None, start_step: int = 0) -> None:
        """`count` is P; the prototypes start in random directions.

        `decay` is the share of itself that an averaged prototype keeps a step, None for learned ones. None is dead
        before `start_step`.
        """
        super().__init__()
        if count < 1:
            raise ModelError(f"loss.prototypes.count: {count} leaves nothing to compare with; set it to 1 at least")
        self.decay, self.start_step = decay, start_step
        start = F.normalize(torch.randn(count, embed_dim), dim=1)
        if decay is None:
            self.prototypes = nn.Parameter(start)
        else:
            self.register_buffer("prototypes", start)
        self.register_buffer("usage", torch.zeros(count))  # running share of the samples
        self.register_buffer("last_used", torch.full((count,), start_step))  # step

    def forward(self) -> torch.Tensor:
        """(P, D) of length 1, float32 at least."""
        return F.normalize(self.prototypes.to(torch.promote_types(self.prototypes.dtype, torch.float32)), dim=1)

    @torch.no_grad()
    def follow(self, sums: torch.Tensor, counts: torch.Tensor) -> None:
        """Move averaged prototypes to their (P, D) `assigned_sums` of (P,) samples each, after an applied step.

        `c <- norm(decay c + (1 - decay) norm(sum))`; one without a sample stays. MoPro's average (Li et al., ICLR
        2021) moves sample by sample; one move a step, however many samples (ours), makes the result independent of
        the order of the batch.
        """
        assert self.decay is not None
        moved = self.decay * F.normalize(self.prototypes, dim=1) + (1 - self.decay) * F.normalize(sums, dim=1)
        self.prototypes.copy_(torch.where(counts.unsqueeze(1) > 0, F.normalize(moved, dim=1), self.prototypes))

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

    def clear(self) -> None:
        """Forget how the prototypes were used."""
        self.usage.zero_()
        self.last_used.fill_(self.start_step)

    def usage_entropy(self) -> torch.Tensor:
        """() entropy of the running usage in nats: log P where all are used alike, 0 where one has all."""
        share = self.usage / self.usage.sum().clamp(min=torch.finfo(self.usage.dtype).tiny)
        entropy: torch.Tensor = torch.special.entr(share).sum()
        return entropy


def cosines(embeddings: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
    """(..., D) of length 1 with (P, D) -> (..., P), in the prototypes' precision."""
    return embeddings.to(prototypes.dtype) @ prototypes.T


@torch.no_grad()
def nearest_counts(scores: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """How many valid samples have each prototype as their nearest: (P,) int64.

    By the plain cosine and not by Sinkhorn-Knopp, which gives every prototype its share, however far it lies
    (ours).

    Args:
        scores: (..., G, P).
        valid: (G,) bool.
    """
    counts = valid.new_zeros(scores.shape[-1], dtype=torch.int64)
    nearest = scores.argmax(dim=-1)
    return counts.index_add_(0, nearest.flatten(), valid.expand_as(nearest).flatten().to(torch.int64))


@torch.no_grad()
def assigned_sums(
    embeddings: Sequence[torch.Tensor], assignments: torch.Tensor, valid: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `PrototypeBank.follow` takes: the sum of each prototype's samples (P, D), and their number (P,).

    A sample belongs to the prototype of its largest share in the balanced assignment, so that all stay in use
    (ours). Sums by shares would draw all prototypes to the mean of everything.

    Args:
        embeddings: S of (G, D).
        assignments: (S, G, P), by `model.sinkhorn`.
        valid: (G,) bool.
    """
    prototypes = torch.arange(assignments.shape[-1], device=valid.device)
    members = (assignments.argmax(dim=-1, keepdim=True) == prototypes) & valid.unsqueeze(1)
    dtype = assignments.dtype
    # a product and not a scattered sum, whose order is not fixed on a GPU
    sums = [own.to(dtype).T @ side.to(dtype) for own, side in zip(members, embeddings, strict=True)]
    return torch.stack(sums).sum(dim=0), members.sum(dim=(0, 1))
