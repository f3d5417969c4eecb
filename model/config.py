"""The typed settings of this package: what the model is, and what it is trained on to minimise."""

from typing import Self

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


class ConsensusConfig(_Config):
    """The consensus-aware embedding of AMSPS, after CVSE (docs/algorithm.md)."""

    concepts: str = Field(min_length=1, description="the concept file that `itm shards concepts` wrote")
    instance_share: float = Field(
        0.85, ge=0, le=1, description="of the instance embedding in the fused one; 0.85 for Flickr30K, 0.9 for COCO"
    )
    label_share: float = Field(
        0.4, ge=0, lt=1, description="of the concepts that a caption names in its distribution over all"
    )
    sharpness: float = Field(10.0, gt=0, description="what the scores are multiplied by in softmaxes over concepts")


class ConsensusLossConfig(_Config):
    """What the losses of a consensus-aware embedding count, against each other."""

    weight: float = Field(1.0, ge=0, description="of the term in the loss")
    start_step: int = Field(0, ge=0, description="optimiser steps before the term counts")
    fused_weight: float = Field(3.0, ge=0, description="of the ranking loss on the fused embedding")
    instance_weight: float = Field(5.0, ge=0, description="of the ranking loss on the instance embedding")
    consensus_weight: float = Field(1.0, ge=0, description="of the ranking loss on the consensus embedding")
    divergence_weight: float = Field(2.0, ge=0, description="of the divergence of a pair's concept distributions")


class AhrlConfig(_Config):
    """AHRL, the adaptive hierarchical reinforcement loss of AMSPS (arXiv 2311.05425; docs/algorithm.md)."""

    weight: float = Field(1.0, ge=0, description="of the term in the loss")
    start_step: int = Field(
        0, ge=0, description="optimiser steps before the levels that need the queue join the first"
    )
    hard: bool = Field(True, description="level 1: the hardest negative of the batch")
    candidate: bool = Field(True, description="level 2: a negative from the queue's most similar entries")
    pair: bool = Field(True, description="level 3: the candidates of both sides, against the true pair")
    adaptive: bool = Field(True, description="level 4: level 1 weighted by how near it comes to the candidate")
    mining: bool = Field(True, description="level 5: soft positives among what is not annotated as a match")
    margin: float = Field(0.2, ge=0, description="of level 1, in units of cosine similarity")
    candidate_margin: float = Field(0.0, ge=0, description="of levels 2 and 3, in units of cosine similarity")
    candidates: int = Field(300, ge=1, description="most similar entries of the queue of which one is drawn")
    alpha: float = Field(0.3, gt=0, description="similarity by which level 4's weight changes by 1")
    beta: float = Field(1.5, ge=0, description="level 4's weight where candidate and negative are equally near")
    max_penalty: float = Field(2.0, ge=1, description="largest weight of level 4")
    quantile: float = Field(0.999, gt=0, lt=1, description="of the momentum agreement, above which level 5 mines")
    quantile_decay: float = Field(0.99, ge=0, lt=1, description="what past steps keep in the running quantile")
    min_agreement: float = Field(0.0, ge=0, le=1, description="below which nothing is mined, whatever the quantile")
    temperature: float = Field(0.07, gt=0, description="of level 5's softmax")
    mining_weight: float = Field(0.1, ge=0, description="of level 5 against the others")

    @property
    def draws_candidates(self) -> bool:
        """Whether any level looks for candidates in the queue."""
        return self.candidate or self.pair or (self.adaptive and self.hard)
