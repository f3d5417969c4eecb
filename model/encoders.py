"""The two encoders: what retrieval needs of a model."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from model.aahr.head import image_head, text_head
from model.amsps.concepts import read_concepts
from model.amsps.consensus import Consensus, ConsensusEmbeddings
from model.amsps.head import InstanceHead
from model.amsps.word_features import word_features
from model.attention import order_inputs
from model.caption_tokenizer import build_caption_tokenizer
from model.config import ModelConfig
from model.features import Encoded, Features
from model.towers.build import build_towers
from model.towers.shared import SharedTower


class PooledHead(nn.Module):
    """The towers' own global features, as CLIP uses them."""

    def __init__(self, embed_dim: int | None, width: int) -> None:
        """`embed_dim` None where both towers' features already are of one width: no projection then."""
        super().__init__()
        self.projection = nn.Identity() if embed_dim is None else nn.Linear(width, embed_dim, bias=False)

    def forward(self, features: Features) -> Encoded:
        """Features -> embeddings; there is no local path, so its place is taken by the global one."""
        pooled = self.projection(features.pooled)
        embedding = F.normalize(pooled.to(torch.promote_types(pooled.dtype, torch.float32)), dim=-1)
        return Encoded(embedding, embedding, features.tokens, features.valid)


class DualEncoder(nn.Module):
    """An image and a text encoder. Both embed independently of each other, so both sides can be indexed."""

    def __init__(self, config: ModelConfig, pretrained: bool = True) -> None:
        """`pretrained=False` skips the recipe's weights for the towers, when others are loaded afterwards.

        Raises `ModelError`.
        """
        super().__init__()
        towers = build_towers(config, load=pretrained)
        self.image_tower, self.text_tower, self.notes = towers.image, towers.text, towers.notes
        self.embed_dim = config.embed_dim
        image_widths = towers.image.pooled_width, towers.image.token_width
        text_widths = towers.text.pooled_width, towers.text.token_width
        self.image_head: nn.Module
        self.text_head: nn.Module
        if config.framework == "amsps":
            self.image_head = InstanceHead(config.embed_dim, image_widths[1])
            self.text_head = InstanceHead(config.embed_dim, text_widths[1])
        elif config.framework in ("clip", "siglip"):
            alike = image_widths[0] == text_widths[0]
            self.embed_dim = image_widths[0] if alike else config.embed_dim
            self.image_head, self.text_head = (
                PooledHead(None if alike else config.embed_dim, width)
                for width in (image_widths[0], text_widths[0])
            )
        else:
            self.image_head, self.text_head = image_head(config, *image_widths), text_head(config, *text_widths)
        self.consensus = self._consensus(config, pretrained) if config.has_consensus else None
        order_inputs(self)
        self.num_concepts = len(self.consensus.graph.features) if self.consensus else 0

    def shared_towers(self, trained: bool) -> dict[nn.Module, nn.Module]:
        """What stands in the place of towers in momentum encoders: of frozen towers, or of those that are trained,
        too, the towers themselves."""
        towers = (self.image_tower, self.text_tower)
        return {
            tower: SharedTower(tower)
            for tower in towers
            if trained or not any(parameter.requires_grad for parameter in tower.parameters())
        }

    def _consensus(self, config: ModelConfig, pretrained: bool) -> Consensus:
        assert config.consensus.concepts is not None
        concepts = read_concepts(Path(config.consensus.concepts))
        adjacency = torch.from_numpy(concepts.adjacency).float()
        features = torch.zeros(len(concepts.words), self.text_tower.pooled_width)
        if pretrained:
            mode = self.text_tower.training
            self.text_tower.eval()
            features = word_features(
                concepts.words, build_caption_tokenizer(config), lambda tokens: self.text_tower(tokens).pooled
            )
            self.text_tower.train(mode)
        return Consensus(features, adjacency, self.embed_dim, config.consensus, concepts.words)

    def encode_image(
        self,
        images: torch.Tensor | None,
        regions: torch.Tensor | None = None,
        region_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(B, side, side, 3) uint8, (B, R, F) float32, (B, R) bool -> (B, D) float32 of length 1.

        What `ModelConfig` does not read may be None.
        """
        encoded = self.represent_image(images, regions, region_mask)
        return self.image_consensus(encoded).fused if self.consensus else encoded.embedding

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        """(C, T) int64 -> (C, D) float32 of length 1.

        With concepts, the last q columns are 0 or 1, as the caption names them or not.
        """
        encoded = self.represent_text(tokens)
        return self.text_consensus(encoded, tokens).fused if self.consensus else encoded.embedding

    def represent_image(
        self,
        images: torch.Tensor | None,
        regions: torch.Tensor | None = None,
        region_mask: torch.Tensor | None = None,
    ) -> Encoded:
        """As `encode_image`, before any consensus, with the local path for the losses that need it."""
        encoded: Encoded = self.image_head(self.image_tower(images, regions, region_mask))
        return encoded

    def represent_text(self, tokens: torch.Tensor) -> Encoded:
        """As `encode_text`, before any consensus, with the local path for the losses that need it."""
        encoded: Encoded = self.text_head(self.text_tower(tokens[:, : tokens.shape[1] - self.num_concepts]))
        return encoded

    def image_consensus(self, encoded: Encoded) -> ConsensusEmbeddings:
        """The embeddings of images on their way through the concepts."""
        assert self.consensus is not None
        return self.consensus.images(encoded.embedding, self.consensus.concepts())

    def text_consensus(self, encoded: Encoded, tokens: torch.Tensor) -> ConsensusEmbeddings:
        """The embeddings of captions on their way through the concepts; `tokens` as in `encode_text`."""
        assert self.consensus is not None
        labels = tokens[:, tokens.shape[1] - self.num_concepts :].bool()
        return self.consensus.texts(encoded.embedding, self.consensus.concepts(), labels)
