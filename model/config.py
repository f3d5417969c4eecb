"""The typed settings of this package: what the model is, and what it is trained on to minimise."""

from typing import Any, Literal, Self

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


class TowerConfig(_Config):
    """How one backbone is trained."""

    freeze: int | Literal["all"] | None = Field(
        None, description="all: the whole tower; N: its embeddings and first N blocks; null: nothing is frozen"
    )
    gradient_checkpointing: bool = Field(
        False, description="compute a block's activations again in the backward pass instead of keeping them"
    )

    @model_validator(mode="before")
    @classmethod
    def _freeze_is_known(cls, values: Any) -> Any:
        # here, as a union's own errors name its members
        freeze = values.get("freeze") if isinstance(values, dict) else None
        if not (freeze is None or freeze == "all" or (type(freeze) is int and freeze >= 0)):
            raise ValueError(f"freeze: {freeze!r}: give all, a number of blocks, or null")
        return values


class ImageConfig(TowerConfig):
    """Where an image's features come from, and how the architecture's image tower is trained."""

    inputs: Literal["pixels", "pixels+regions", "regions"] = Field(
        "pixels",
        description="pixels: global feature and patches of the image tower; pixels+regions: its global feature, "
        "with precomputed regions as local tokens; regions: those alone, their mean as the global feature",
    )
    region_width: int = Field(2048, ge=1, description="width F of a precomputed region")


class TransformerConfig(TowerConfig):
    """A text encoder of the `transformers` library: BERT, RoBERTa, DistilBERT and their kin."""

    name: str = Field("bert-base-uncased", description="folder that save_pretrained wrote, or a hub name")
    weights: str | None = Field(
        None,
        description="null: those of `name`; random; or a file, a folder of transformers or a checkpoint of ours",
    )
    pooling: Literal["cls", "mean"] = Field(
        "cls", description="global feature: the first token's last hidden state, or the mean over all tokens"
    )
    max_length: int = Field(64, ge=3, description="tokens a caption, those that begin and end it included")


class TextConfig(TowerConfig):
    """Where a caption's features come from, and how the architecture's text tower is trained."""

    towers: Literal["clip", "clip+transformer", "transformer"] = Field(
        "clip",
        description="clip: the architecture's text tower; clip+transformer: its global feature, with word tokens "
        "of the transformer; transformer: that alone",
    )
    transformer: TransformerConfig = TransformerConfig()


class ModelConfig(_Config):
    """Which towers, and the width in which images and texts meet."""

    architecture: str = Field("ViT-B-32", description="an open_clip configuration, or one of our own: itm-*")
    pretrained: str | None = Field(
        None,
        description="weights of the architecture's towers: an open_clip tag, a file, or a checkpoint of ours",
    )
    image: ImageConfig = ImageConfig()
    text: TextConfig = TextConfig()
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

    @property
    def reads_pixels(self) -> bool:
        """Whether images must come as pixels."""
        return self.image.inputs != "regions"

    @property
    def reads_regions(self) -> bool:
        """Whether images must come with precomputed regions."""
        return self.image.inputs != "pixels"


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
