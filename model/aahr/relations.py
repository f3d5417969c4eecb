"""AAHR: embeddings enhanced by their neighbours in the batch. Training only: an item alone has no neighbours.

The nodes of a group are the local embeddings of its n images, then of its n texts. What connects them is
HREM's (Fu et al., CVPR 2023); the graph convolutions before the attention are AAHR's.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from model.aahr.relevance import CrossRelevance, FragmentRelevance, both_valid
from model.config import RelationsConfig
from model.errors import ModelError
from model.features import Encoded


@dataclass
class Related:
    """b pairs in G groups of n, after the relations between them."""

    image: torch.Tensor
    """(b, D) enhanced embeddings of length 1."""
    text: torch.Tensor
    """(b, D)."""
    cross: CrossRelevance
    """(G, n, n) each: what the regulariser needs."""


def distance_relevance(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """`exp(-euclidean distance)` of (..., n, D) and (..., m, D) rows of length 1: (..., n, m)."""
    squared = 2 - 2 * rows @ columns.mT
    # the root has no finite gradient at 0, where rounding would decide what it is
    return torch.exp(-squared.clamp(min=torch.finfo(squared.dtype).eps).sqrt())


@torch.no_grad()
def top_half(scores: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Which entries are among the top half of their row: (G, n, n) scores, (G, n) bool -> (G, n, n) bool.

    Of v valid columns the v // 2 largest are kept, one at least, and whatever ties with the last of them. No entry
    of a row or column that is not valid is kept.
    """
    kept = (valid.sum(dim=-1) // 2).clamp(min=1)
    ranked = scores.masked_fill(~valid.unsqueeze(-2), -torch.inf).sort(dim=-1, descending=True).values
    last = ranked.gather(-1, (kept - 1).view(-1, 1, 1).expand(-1, scores.shape[-2], 1))
    return (scores >= last) & both_valid(valid)


class GraphConvolution(nn.Module):
    """`leaky ReLU(A (dropout(x) W) + bias)`, slope 0.2; A is the relevance as it is, its rows not normalised."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width, width, bias=False)
        nn.init.xavier_uniform_(self.linear.weight)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, nodes: torch.Tensor, relevance: torch.Tensor) -> torch.Tensor:
        """(G, N, D) nodes, (G, N, N) -> (G, N, D)."""
        return F.leaky_relu(relevance @ self.linear(self.dropout(nodes)) + self.bias, 0.2)


class NeighbourAttention(nn.TransformerEncoderLayer):
    """One transformer encoder layer over the nodes, with feed-forward width D."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        # not batch_first: the fast path of evaluation, which asks for it, is wrong with a mask of numbers
        super().__init__(width, heads, dim_feedforward=width, dropout=dropout, batch_first=False)
        self.heads = heads

    def among(self, nodes: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(G, N, D) nodes, (G, N, N) added to the attention's scores -> (G, N, D)."""
        related: torch.Tensor = self(nodes.transpose(0, 1), src_mask=mask.repeat_interleave(self.heads, dim=0))
        return related.transpose(0, 1)


class RelationGraph(nn.Module):
    """Two layers of graph convolution, one a modality and one over both, then attention over connected nodes."""

    def __init__(self, embed_dim: int, config: RelationsConfig) -> None:
        super().__init__()
        if embed_dim % config.heads:
            raise ModelError(
                f"loss.relations.heads: embed_dim {embed_dim} is not divisible by {config.heads} heads; "
                "choose a divisor of embed_dim"
            )
        self.group, self.mask_weight = config.group, config.mask_weight
        self.image_convolution = GraphConvolution(embed_dim, config.gcn_dropout)
        self.text_convolution = GraphConvolution(embed_dim, config.gcn_dropout)
        self.shared_convolution = GraphConvolution(embed_dim, config.gcn_dropout)
        self.attention = NeighbourAttention(embed_dim, config.heads, config.dropout)

    def forward(
        self, image: torch.Tensor, text: torch.Tensor, cross: CrossRelevance, valid: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(b, D) local embeddings of length 1, their cross relevance, (b,) bool -> (b, D) enhanced, of length 1."""
        valid = valid.reshape(-1, self.group)
        images, texts = (
            side.reshape(*valid.shape, -1).masked_fill(~valid.unsqueeze(-1), 0) for side in (image, text)
        )
        i2i, t2t = _among_themselves(images, valid), _among_themselves(texts, valid)
        relevance = _blocks(i2i, cross.i2t, cross.t2i, t2t)
        convolved = torch.cat([self.image_convolution(images, i2i), self.text_convolution(texts, t2t)], dim=1)
        nodes = torch.cat([images, texts], dim=1)
        nodes = F.normalize(self.shared_convolution(convolved, relevance), dim=-1) + nodes
        # HREM connects by the average also where relevance is learned
        connected = _blocks(
            top_half(images @ images.mT, valid),
            top_half(cross.i2t_mean, valid),
            top_half(cross.t2i_mean, valid),
            top_half(texts @ texts.mT, valid),
        )
        # a row that is connected to nothing would be NaN
        connected = connected | torch.eye(connected.shape[-1], dtype=torch.bool, device=connected.device)
        mask = (self.mask_weight * relevance).masked_fill(~connected, -torch.inf)
        enhanced = F.normalize(self.attention.among(nodes, mask), dim=-1)
        enhanced_image, enhanced_text = enhanced.chunk(2, dim=1)
        return enhanced_image.flatten(0, 1), enhanced_text.flatten(0, 1)


def _among_themselves(nodes: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """(G, n, D) of one modality -> (G, n, n) relevance, 1 of a node to itself, 0 where a node is not valid."""
    itself = torch.eye(nodes.shape[1], dtype=torch.bool, device=nodes.device)
    return distance_relevance(nodes, nodes).masked_fill(itself, 1).masked_fill(~both_valid(valid), 0)


def _blocks(i2i: torch.Tensor, i2t: torch.Tensor, t2i: torch.Tensor, t2t: torch.Tensor) -> torch.Tensor:
    """Four (G, n, n) -> (G, 2n, 2n), images first."""
    return torch.cat([torch.cat([i2i, i2t], dim=-1), torch.cat([t2i, t2t], dim=-1)], dim=-2)


class Relations(nn.Module):
    """Both together: fragments and local embeddings of a rank's pairs -> embeddings that know their neighbours."""

    def __init__(self, embed_dim: int, config: RelationsConfig) -> None:
        """Raises ModelError where `embed_dim` is not divisible by the attention's heads."""
        super().__init__()
        self.relevance = FragmentRelevance(config)
        self.graph = RelationGraph(embed_dim, config)

    def forward(self, image: Encoded, text: Encoded, valid: torch.Tensor) -> Related:
        """b pairs, (b,) bool. b is a multiple of the group; a group's result depends on nothing outside of it.

        Pairs that are not valid influence nothing; their own rows are finite and mean nothing.
        """
        cross: CrossRelevance = self.relevance(image.tokens, text.tokens, image.valid, text.valid, valid)
        enhanced_image, enhanced_text = self.graph(image.local, text.local, cross, valid)
        return Related(enhanced_image, enhanced_text, cross)
