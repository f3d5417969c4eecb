"""The typed settings of this package: what the model is, and what it is trained on to minimise."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class AahrConfig(_Config):
    """AAHR's heads on top of the towers (arXiv 2507.09256; docs/algorithm.md)."""

    fragment_heads: int = Field(16, ge=1, description="attention heads of the fragment graph")
    pooling_heads: int = Field(8, ge=1, description="heads of the global-guided pooling")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout in the fragment graph")
    top_k: int = Field(2, ge=1, description="values averaged a channel in the max pooling")
    max_weight: float = Field(0.8, ge=0, le=1, description="share of the max pooling in the local embedding")


class ModelConfig(_Config):
    """Which towers, and the width in which images and texts meet."""

    architecture: str = Field("ViT-B-32", description="an open_clip configuration, or one of our own: itm-*")
    pretrained: str | None = Field(None, description="an open_clip weights tag or file for the towers")
    embed_dim: int = Field(1024, ge=1, description="width D of the shared embedding")
    norm_group: int = Field(128, ge=1, description="consecutive samples that share batch-norm statistics")
    aahr: AahrConfig = AahrConfig()

    @model_validator(mode="after")
    def _widths_divide(self) -> Self:
        if self.embed_dim % self.aahr.fragment_heads:
            raise ValueError(
                f"embed_dim: {self.embed_dim} is not divisible by {self.aahr.fragment_heads} aahr.fragment_heads"
            )
        if self.embed_dim % 2:
            raise ValueError(f"embed_dim: {self.embed_dim} is odd; the local projection halves it")
        return self


class BaseLossConfig(_Config):
    """L_base, the VSE++ hinge with the hardest negative of the global batch (Faghri et al., BMVC 2018)."""

    weight: float = Field(1.0, ge=0, description="of the term in the loss")
    margin: float = Field(0.2, ge=0, description="in units of cosine similarity")
    all_negatives_steps: int | None = Field(
        None, ge=0, description="steps with the mean over all negatives before the hardest; null: the first epoch"
    )


class LossConfig(_Config):
    """The terms of the loss."""

    base: BaseLossConfig = BaseLossConfig()


class RelationsConfig(_Config):
    """L_rel, instance-neighbourhood relations within groups of pairs (AAHR; Fu et al., CVPR 2023)."""

    weight: float = Field(1.0, ge=0, description="of the term in the loss")
    start_step: int = Field(8000, ge=0, description="optimiser steps before the term counts")
    group: int = Field(128, ge=2, description="consecutive pairs of the global batch that see each other")
    relevance: Literal["learned", "average"] = Field(
        "learned", description="of images and texts to each other: the average match, or that and an MLP"
    )
    tile: int = Field(16, ge=1, description="texts whose words are compared at a time; bounds memory alone")
    mask_weight: float = Field(1.0, ge=0, description="of relevance in the attention: 1 Flickr30K, 1.5 COCO")
    heads: int = Field(16, ge=1, description="attention heads over the nodes")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout in the attention layer")
    gcn_dropout: float = Field(0.6, ge=0, lt=1, description="dropout before each graph convolution")


class RegulariserConfig(_Config):
    """L_reg, which draws the fragments' relevance to the local embeddings' distances."""

    weight: float = Field(10.0, ge=0, description="of the term in the loss")
    start_step: int = Field(8000, ge=0, description="optimiser steps before the term counts")
