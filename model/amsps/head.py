"""AMSPS: a tower's features -> the instance embedding."""

import torch
import torch.nn.functional as F
from torch import nn

from model.amsps.pooling import MeanQueryPooling
from model.features import Encoded, Features


class InstanceHead(nn.Module):
    """One modality's tokens, mapped to width D and pooled. Stands where AAHR's head does."""

    def __init__(self, embed_dim: int, token_width: int) -> None:
        super().__init__()
        self.projection = nn.Linear(token_width, embed_dim)
        self.pooling = MeanQueryPooling(embed_dim)

    def forward(self, features: Features) -> Encoded:
        """Features -> embeddings, and the tokens that they were pooled from."""
        tokens = self.projection(features.tokens)
        pooled = self.pooling(tokens, features.valid)
        # bfloat16 would leave lengths off by half a percent
        embedding = F.normalize(pooled.to(torch.promote_types(pooled.dtype, torch.float32)), dim=-1)
        return Encoded(embedding, embedding, tokens, features.valid)
