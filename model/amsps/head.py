"""AMSPS: a tower's features -> the instance embedding."""

import torch
import torch.nn.functional as F
from torch import nn

from model.amsps.pooling import MeanQueryPooling
from model.features import Features


class InstanceHead(nn.Module):
    """One modality's tokens, mapped to width D and pooled. Stands where AAHR's head does."""

    def __init__(self, embed_dim: int, token_width: int) -> None:
        super().__init__()
        self.projection = nn.Linear(token_width, embed_dim)
        self.pooling = MeanQueryPooling(embed_dim)

    def forward(self, features: Features) -> torch.Tensor:
        """Features -> (B, D) embeddings of length 1, float32."""
        pooled: torch.Tensor = self.pooling(self.projection(features.tokens), features.valid)
        # bfloat16 would leave lengths off by half a percent
        return F.normalize(pooled.to(torch.promote_types(pooled.dtype, torch.float32)), dim=-1)
