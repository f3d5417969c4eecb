"""AMSPS: instance embedding -> consensus embedding and the fusion of both, by a graph of concepts.

CVSE (Wang et al., "Consensus-aware visual-semantic embedding for image-text matching", ECCV 2020, sections 3.2
and 3.3). Images and texts are embedded independently of each other.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from model.config import ConsensusConfig
from model.errors import ModelError


class ConsensusEmbeddings(NamedTuple):
    """One modality's embeddings of B items."""

    fused: torch.Tensor
    """(B, D) of length 1: the embedding for retrieval."""
    instance: torch.Tensor
    """(B, D) of length 1: what the item itself says."""
    consensus: torch.Tensor
    """(B, D) of length 1: what is commonly said with it."""
    log_concepts: torch.Tensor
    """(B, q) logarithms of the distribution over the concepts, all finite."""


class ConceptGraph(nn.Module):
    """Two graph convolutions over the concepts: `A leaky(A X W_1) W_2`, X the words' features."""

    features: torch.Tensor
    adjacency: torch.Tensor

    def __init__(self, features: torch.Tensor, adjacency: torch.Tensor, embed_dim: int) -> None:
        """`features` (q, width) and `adjacency` (q, q) become buffers; zeros do where weights are loaded."""
        super().__init__()
        self.register_buffer("features", features.detach().clone())
        self.register_buffer("adjacency", adjacency.detach().clone())
        self.first = nn.Linear(features.shape[1], embed_dim, bias=False)
        self.second = nn.Linear(embed_dim, embed_dim, bias=False)
        for layer in (self.first, self.second):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self) -> torch.Tensor:
        """-> (q, D) concept vectors."""
        hidden = F.leaky_relu(self.adjacency @ self.first(self.features), 0.2)
        vectors: torch.Tensor = self.adjacency @ self.second(hidden)
        return vectors


class ConceptAttention(nn.Module):
    """One modality's distribution over the concepts: `softmax_k(sharpness * w^T (W_1 z_k * W_2 x))`."""

    def __init__(self, embed_dim: int, sharpness: float) -> None:
        super().__init__()
        self.sharpness = sharpness
        self.concept = nn.Linear(embed_dim, embed_dim, bias=False)
        self.instance = nn.Linear(embed_dim, embed_dim, bias=False)
        self.score = nn.Parameter(torch.empty(embed_dim))
        for layer in (self.concept, self.instance):
            nn.init.xavier_uniform_(layer.weight)
        nn.init.uniform_(self.score, -math.sqrt(6 / (embed_dim + 1)), math.sqrt(6 / (embed_dim + 1)))

    def forward(self, instance: torch.Tensor, concepts: torch.Tensor) -> torch.Tensor:
        """(B, D), (q, D) -> (B, q) log probabilities."""
        scores = (self.instance(instance) * self.score) @ self.concept(concepts).T
        return F.log_softmax(self.sharpness * scores, dim=-1)


def mix_labels(log_concepts: torch.Tensor, labels: torch.Tensor, share: float, sharpness: float) -> torch.Tensor:
    """`share * softmax(sharpness * label) + (1 - share) * a`, in logarithms: (B, q) -> (B, q).

    Labels (B, q) bool, True for the concepts that a caption names. A caption that names none keeps its own
    distribution, as if the share were 0 (ours): the labels' softmax would say that it is about everything.
    """
    if share == 0:
        return log_concepts
    named = F.log_softmax(sharpness * labels.to(log_concepts.dtype), dim=-1)
    mixed = torch.logaddexp(named + math.log(share), log_concepts + math.log1p(-share))
    return torch.where(labels.any(dim=-1, keepdim=True), mixed, log_concepts)


class Consensus(nn.Module):
    """Both modalities' way through the concepts. Takes any instance embedding, AAHR's as well as AMSPS's."""

    vocabulary: torch.Tensor

    def __init__(
        self,
        features: torch.Tensor,
        adjacency: torch.Tensor,
        embed_dim: int,
        config: ConsensusConfig,
        words: Sequence[str] = (),
    ) -> None:
        """`features` (q, width) of the concepts' words, `adjacency` (q, q) of their graph; the q words."""
        super().__init__()
        self.config = config
        digest = hashlib.sha256("\n".join(words).encode()).digest()
        self.register_buffer("vocabulary", torch.frombuffer(bytearray(digest), dtype=torch.uint8))
        self.register_load_state_dict_pre_hook(_check_vocabulary)  # type: ignore[no-untyped-call]
        self.graph = ConceptGraph(features.float(), adjacency.float(), embed_dim)
        self.image_attention = ConceptAttention(embed_dim, config.sharpness)
        self.text_attention = ConceptAttention(embed_dim, config.sharpness)

    def concepts(self) -> torch.Tensor:
        """(q, D) concept vectors, the same for images and texts: compute them once a step."""
        vectors: torch.Tensor = self.graph()
        return vectors

    def images(self, instance: torch.Tensor, concepts: torch.Tensor) -> ConsensusEmbeddings:
        """(B, D) of length 1 and `concepts()` -> embeddings."""
        return self._embed(instance, concepts, self.image_attention(instance, concepts))

    def texts(self, instance: torch.Tensor, concepts: torch.Tensor, labels: torch.Tensor) -> ConsensusEmbeddings:
        """(B, D) of length 1, `concepts()`, (B, q) bool concepts that each caption names -> embeddings.

        Labels are mixed in in training and evaluation alike: the caption is known.
        """
        log_concepts = self.text_attention(instance, concepts)
        mixed = mix_labels(log_concepts, labels, self.config.label_share, self.config.sharpness)
        return self._embed(instance, concepts, mixed)

    def _embed(
        self, instance: torch.Tensor, concepts: torch.Tensor, log_concepts: torch.Tensor
    ) -> ConsensusEmbeddings:
        full = torch.promote_types(log_concepts.dtype, torch.float32)  # autocast's matmuls give less
        instance, log_concepts = instance.to(full), log_concepts.to(full)
        directions = F.normalize(concepts.to(full), dim=-1)
        consensus = F.normalize((log_concepts.exp() @ directions).to(full), dim=-1)
        share = self.config.instance_share
        fused = F.normalize(share * instance + (1 - share) * consensus, dim=-1)
        return ConsensusEmbeddings(fused, instance, consensus, log_concepts)


def _check_vocabulary(module: nn.Module, weights: dict[str, Any], prefix: str, *_rest: object) -> None:
    """Refuse weights that were learned with other concepts, which captions would be labelled with."""
    theirs = weights.get(f"{prefix}vocabulary")
    if theirs is not None and not torch.equal(theirs.cpu(), module.get_buffer("vocabulary").cpu()):
        raise ModelError("model.consensus.concepts: the weights were learned with other concepts; give their file")
