"""Sinkhorn-Knopp: scores -> soft assignments that use all prototypes alike, over the global batch."""

import torch


@torch.no_grad()
def sinkhorn(scores: torch.Tensor, valid: torch.Tensor, epsilon: float, iterations: int) -> torch.Tensor:
    """(..., G, P) scores of the global batch -> (..., G, P) assignments, each sample's summing to 1.

    Starts from `exp(scores / epsilon)`. An iteration first scales every prototype to an equal share of the
    mass, then every sample; it ends with the samples, so their sums are exact and the prototypes' are
    approached: the order and the last step of SwAV (Caron et al., NeurIPS 2020, arXiv 2006.09882, section
    3.1). Constant factors cancel in that last step and are left out. In the log domain (ours), so nothing
    overflows. Every rank computes all of it, from embeddings that are gathered anyway: no exchange.

    Args:
        scores: float, of any size; float32 at least is computed in and returned.
        valid: (G,) bool. Other samples carry no mass, and their assignments are 0.
        epsilon: regularisation, in units of the scores; smaller is closer to one prototype a sample.
        iterations: one at least.
    """
    dtype = torch.promote_types(scores.dtype, torch.float32)
    rows = valid.unsqueeze(-1)
    log_q = (scores.to(dtype) / epsilon).masked_fill(~rows, -torch.inf)
    for _ in range(iterations):
        mass = log_q.logsumexp(dim=-2)
        # a batch without any valid sample has no mass to share out
        log_q = log_q - mass.masked_fill(mass == -torch.inf, 0).unsqueeze(-2)
        log_q = log_q - log_q.logsumexp(dim=-1, keepdim=True).masked_fill(~rows, 0)
    return log_q.exp()
