"""AAHR: local tokens -> one local embedding, by the largest values and by attention from the global."""

import torch
import torch.nn.functional as F
from torch import nn


def top_k_mean(tokens: torch.Tensor, valid: torch.Tensor | None, k: int) -> torch.Tensor:
    """Mean of the k largest values a channel over the valid tokens: (B, n, D) -> (B, D).

    An item with fewer than k valid tokens averages those that it has.
    """
    k = min(k, tokens.shape[1])
    if valid is None:
        return tokens.topk(k, dim=1).values.mean(dim=1)
    values = tokens.masked_fill(~valid.unsqueeze(-1), -torch.inf).topk(k, dim=1).values
    counts = valid.sum(dim=1).clamp(max=k)
    present = torch.arange(k, device=tokens.device) < counts.unsqueeze(1)
    return values.masked_fill(~present.unsqueeze(-1), 0).sum(dim=1) / counts.unsqueeze(1)


class GlobalGuidedPooling(nn.Module):
    """Attention over local tokens whose query is the projected global feature (GGLP).

    Each of the heads has its own D x D query, key and value maps; queries and keys are L2-normalised, the
    softmax runs over the valid tokens only, and the heads' outputs are averaged.
    """

    def __init__(self, embed_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(embed_dim, heads * embed_dim, bias=False)
        self.key = nn.Linear(embed_dim, heads * embed_dim, bias=False)
        self.value = nn.Linear(heads * embed_dim, embed_dim, bias=False)
        # the heads' value maps side by side, each with the initial scale of a D x D map of its own
        nn.init.uniform_(self.value.weight, -(embed_dim**-0.5), embed_dim**-0.5)

    def forward(self, pooled: torch.Tensor, tokens: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """(B, D) global, (B, n, D) tokens, (B, n) valid or None -> (B, D)."""
        query = F.normalize(self.query(pooled).unflatten(-1, (self.heads, -1)), dim=-1)
        # a query goes through its head's key map once, instead of meeting a normalised copy of every key
        maps = self.key.weight.view(self.heads, -1, tokens.shape[-1])
        through = torch.bmm(query.transpose(0, 1), maps).transpose(0, 1)
        lengths = torch.linalg.vector_norm(self.key(tokens).unflatten(-1, (self.heads, -1)), dim=-1)
        scores = torch.bmm(through, tokens.mT) / lengths.clamp(min=1e-12).mT
        if valid is not None:
            scores = scores.masked_fill(~valid.unsqueeze(1), -torch.inf)
        # the value map is linear, so it is applied to the h pooled tokens instead of to all n
        attended = torch.bmm(scores.softmax(dim=-1), tokens)
        output: torch.Tensor = self.value(attended.flatten(1)) / self.heads
        return output
