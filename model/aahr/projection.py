"""AAHR: maps from a tower's widths to the shared width D."""

import torch
from torch import nn

from model.group_norm import GroupBatchNorm


class GlobalProjection(nn.Module):
    """Residual projection of the global feature: `fc(x) + mlp(x)`, the mlp one linear layer."""

    def __init__(self, width: int, embed_dim: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, embed_dim)
        self.mlp = nn.Linear(width, embed_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, width) -> (B, D)."""
        projected: torch.Tensor = self.fc(x) + self.mlp(x)
        return projected


class ImageLocalProjection(nn.Module):
    """Residual MLP on regions or patches: `fc(x) + mlp(x)`, mlp = linear to D/2, batch norm, ReLU, linear."""

    def __init__(self, width: int, embed_dim: int, norm_group: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, embed_dim)
        self.reduce = nn.Linear(width, embed_dim // 2)
        self.norm = GroupBatchNorm(embed_dim // 2, norm_group)
        self.expand = nn.Linear(embed_dim // 2, embed_dim)

    def forward(self, x: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        """(B, n, width) tokens, (B, n) bool or None when all are real -> (B, n, D)."""
        reduced = torch.relu(self.norm(self.reduce(x), valid))
        projected: torch.Tensor = self.fc(x) + self.expand(reduced)
        return projected


class TextLocalProjection(nn.Linear):
    """One linear layer on words."""

    def forward(self, x: torch.Tensor, _valid: torch.Tensor | None = None) -> torch.Tensor:
        """(B, n, width) -> (B, n, D)."""
        return super().forward(x)
