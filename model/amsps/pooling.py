"""AMSPS: tokens -> one vector, by attention whose query is the tokens' own mean."""

import torch
from torch import nn


class MeanQueryPooling(nn.Module):
    """`sum_n a_n l_n` with `a = softmax_n(w^T (tanh(W_1 l_n) * tanh(W_2 m)))`, m the mean of the l_n.

    CVSE's pooling of regions and of words, without its batch norm and dropout (ours).
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.local = nn.Linear(embed_dim, embed_dim)
        self.mean = nn.Linear(embed_dim, embed_dim)
        self.score = nn.Linear(embed_dim, 1, bias=False)  # a softmax does not see a bias

    def forward(self, tokens: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """(B, n, D) tokens, (B, n) valid or None -> (B, D). Mean and softmax run over the valid tokens."""
        if valid is None:
            mean = tokens.mean(dim=1, keepdim=True)
        else:
            total = tokens.masked_fill(~valid.unsqueeze(-1), 0).sum(dim=1, keepdim=True)
            mean = total / valid.sum(dim=1).view(-1, 1, 1)
        scores = self.score(torch.tanh(self.local(tokens)) * torch.tanh(self.mean(mean))).squeeze(-1)
        if valid is not None:
            scores = scores.masked_fill(~valid, -torch.inf)
        return torch.einsum("bn,bnd->bd", scores.softmax(dim=-1).to(tokens.dtype), tokens)
