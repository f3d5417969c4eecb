"""AAHR: a tower's features -> the embedding used for retrieval."""

import torch
import torch.nn.functional as F
from torch import nn

from model.aahr.pooling import GlobalGuidedPooling, top_k_mean
from model.aahr.projection import GlobalProjection, ImageLocalProjection, TextLocalProjection
from model.config import ModelConfig
from model.features import Encoded, Features


class FragmentGraph(nn.TransformerEncoderLayer):
    """One transformer encoder layer over an item's tokens, with feed-forward width D."""

    def __init__(self, embed_dim: int, heads: int, dropout: float) -> None:
        super().__init__(embed_dim, heads, dim_feedforward=embed_dim, dropout=dropout, batch_first=True)


class AdaptiveAggregation(nn.Module):
    """Gate between local and global: `z = sigmoid(Linear([a; g]))`, `e = z * a + (1 - z) * g`, normalised."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(2 * embed_dim, embed_dim)

    def forward(self, local: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        """(B, D) local and (B, D) global -> (B, D) of length 1."""
        a, g = F.normalize(local, dim=-1), F.normalize(pooled, dim=-1)
        z = torch.sigmoid(self.gate(torch.cat([a, g], dim=-1)))
        mixed = z * a + (1 - z) * g
        # bfloat16 would leave lengths off by half a percent
        return F.normalize(mixed.to(torch.promote_types(mixed.dtype, torch.float32)), dim=-1)


class AahrHead(nn.Module):
    """Global and local path of one modality, and their aggregation."""

    def __init__(self, config: ModelConfig, pooled_width: int, local_projection: nn.Module) -> None:
        super().__init__()
        d, aahr = config.embed_dim, config.aahr
        self.top_k, self.max_weight = aahr.top_k, aahr.max_weight
        self.global_projection = GlobalProjection(pooled_width, d)
        self.local_projection = local_projection
        self.fragment_graph = FragmentGraph(d, aahr.fragment_heads, aahr.dropout)
        self.pooling = GlobalGuidedPooling(d, aahr.pooling_heads)
        self.aggregation = AdaptiveAggregation(d)

    def forward(self, features: Features) -> Encoded:
        """Features -> embeddings, and the local path that they came from, which some losses need."""
        pooled = self.global_projection(features.pooled)
        tokens = self.local_projection(features.tokens, features.valid)
        padding = None if features.valid is None else ~features.valid
        related = self.fragment_graph(tokens, src_key_padding_mask=padding)
        largest = top_k_mean(tokens, features.valid, self.top_k)
        attended = self.pooling(pooled, related, features.valid)
        local = self.max_weight * largest + (1 - self.max_weight) * attended
        embedding: torch.Tensor = self.aggregation(local, pooled)
        return Encoded(embedding.float(), F.normalize(local.float(), dim=-1), tokens, features.valid)


def image_head(config: ModelConfig, pooled_width: int, token_width: int) -> AahrHead:
    projection = ImageLocalProjection(token_width, config.embed_dim, config.norm_group)
    return AahrHead(config, pooled_width, projection)


def text_head(config: ModelConfig, pooled_width: int, token_width: int) -> AahrHead:
    return AahrHead(config, pooled_width, TextLocalProjection(token_width, config.embed_dim))
