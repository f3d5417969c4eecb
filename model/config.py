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
    size: int | None = Field(
        None,
        ge=1,
        description="side of the pictures in pixels; null: the architecture's; position embeddings of weights "
        "that were trained with another are interpolated",
    )


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


Framework = Literal["aahr", "amsps", "aahr+amsps", "clip", "siglip"]


class ConsensusConfig(_Config):
    """The consensus-aware embedding of AMSPS, after CVSE (docs/algorithm.md)."""

    concepts: str | None = Field(
        None, min_length=1, description="the file that `itm shards concepts` wrote; null: no consensus embedding"
    )
    instance_share: float = Field(
        0.85, ge=0, le=1, description="of the instance embedding in the fused one; 0.85 for Flickr30K, 0.9 for COCO"
    )
    label_share: float = Field(
        0.4, ge=0, lt=1, description="of the concepts that a caption names in its distribution over all"
    )
    sharpness: float = Field(10.0, gt=0, description="what the scores are multiplied by in softmaxes over concepts")


class ModelConfig(_Config):
    """Which method, which towers, and the width in which images and texts meet."""

    framework: Framework = Field(
        "aahr", description="the method: its heads and its losses; clip and siglip are baselines on the same towers"
    )
    architecture: str = Field(
        "ViT-B-32",
        description="an open_clip configuration with CLIP's own text tower (ViT, ConvNeXt, Swin, ViTamin, EVA, PE) "
        "or one of our own: itm-*; not RN, SigLIP, CoCa or MobileCLIP",
    )
    pretrained: str | None = Field(
        None,
        description="weights of the architecture's towers: an open_clip tag, a file, or a checkpoint of ours",
    )
    image: ImageConfig = ImageConfig()
    text: TextConfig = TextConfig()
    embed_dim: int = Field(1024, ge=1, description="width D of the shared embedding")
    norm_group: int = Field(128, ge=1, description="AAHR: consecutive samples that share batch-norm statistics")
    aahr: AahrConfig = AahrConfig()
    consensus: ConsensusConfig = ConsensusConfig()

    @model_validator(mode="after")
    def _widths_divide(self) -> Self:
        if not self.has_aahr:
            return self
        heads = self.aahr.fragment_heads
        if self.embed_dim % heads:
            raise ValueError(f"embed_dim: {self.embed_dim} is not divisible by {heads} model.aahr.fragment_heads")
        if self.embed_dim % 2:
            raise ValueError(f"embed_dim: {self.embed_dim} is odd; the local projection halves it")
        return self

    @property
    def has_aahr(self) -> bool:
        """Whether AAHR's heads and losses are there, and with them batch norm over groups."""
        return self.framework in ("aahr", "aahr+amsps")

    @property
    def has_consensus(self) -> bool:
        """Whether embeddings pass through the concepts."""
        return self.consensus.concepts is not None and self.framework not in ("clip", "siglip")

    @property
    def reads_pixels(self) -> bool:
        """Whether images must come as pixels."""
        return self.image.inputs != "regions"

    @property
    def reads_regions(self) -> bool:
        """Whether images must come with precomputed regions."""
        return self.image.inputs != "pixels"


class BaseLossConfig(_Config):
    """L_base, the hinge with one negative of the global batch an anchor: the hardest (VSE++, Faghri et al.,
    BMVC 2018), or one drawn by the inverse density of its distance (AAHR's default; Wu et al., ICCV 2017)."""

    weight: float = Field(
        1.0,
        ge=0,
        description="of the term, a mean over anchors; 128 is the balance of AAHR's code, which sums",
    )
    start_step: int = Field(
        0, ge=0, description="optimiser steps before the ranking term counts, be it this hinge or AHRL"
    )
    margin: float = Field(0.2, ge=0, description="in units of cosine similarity")
    all_negatives_steps: int | None = Field(
        None,
        ge=0,
        description="steps with the mean over all negatives before one is chosen; "
        "null: the first epoch before the hardest, none before distance-weighted ones",
    )
    negatives: Literal["hardest", "distance-weighted"] = Field(
        "hardest", description="how an anchor's negative is chosen"
    )
    cutoff: float = Field(
        1.7,
        gt=0.5,
        le=2,
        description="distance-weighted: negatives at a larger distance are left out (1.7 Flickr30K, 1.9 COCO)",
    )
    density_dimension: int = Field(
        512, ge=4, description="distance-weighted: d of the sphere whose density of distances is inverted"
    )


class MomentumContrastConfig(_Config):
    """L_moco, InfoNCE against a queue of momentum embeddings (MoCo, arXiv 1911.05722, as in AAHR)."""

    weight: float = Field(1.0, ge=0, description="of the term in the loss")
    start_step: int | None = Field(
        None, ge=0, description="the term's first optimiser step; null: as soon as the queue is full"
    )
    temperature: float = Field(0.07, gt=0, description="what similarities are divided by")
    query: Literal["fused", "local"] = Field(
        "fused", description="the online embedding that queries: the final one, or the un-fused local one"
    )


class ContrastConfig(_Config):
    """The baselines: CLIP's loss (arXiv 2103.00020) or SigLIP's (arXiv 2303.15343), as the only ranking loss."""

    initial_scale: float | None = Field(
        None, gt=0, description="learnable factor of similarities at the start; null: clip 1/0.07, siglip 10"
    )
    max_scale: float = Field(100.0, gt=0, description="clip: the factor's upper bound")
    initial_bias: float = Field(-10.0, description="siglip: learnable bias of the logits at the start")


class PrototypeConfig(_Config):
    """L_proto, AAHR's prototype contrast, and what keeps its prototypes in use (the latter ours)."""

    count: int = Field(384, ge=1, description="prototypes; the paper has 384 on Flickr30K, 768 on COCO")
    weight: float = Field(0.2, ge=0, description="of the term in the loss")
    start_step: int = Field(2200, ge=0, description="optimiser steps before the term starts")
    temperature: float = Field(0.1, gt=0, description="of the predictions")
    update: Literal["gradient", "average"] = Field(
        "gradient", description="prototypes are learned with the weights, or follow the mean of their samples"
    )
    decay: float = Field(0.99, ge=0, lt=1, description="average: share of itself that a prototype keeps a step")
    sinkhorn_iterations: int = Field(3, ge=1, description="of Sinkhorn-Knopp, which makes the assignments")
    sinkhorn_epsilon: float = Field(0.1, gt=0, description="temperature of the assignments")
    reestimate_every: int = Field(
        0, ge=0, description="steps between two estimates by k-means over the queue; 0: never"
    )
    reseed_after: int = Field(
        0, ge=0, description="steps without a nearest sample after which a prototype is set anew; 0: never"
    )


class QueueConfig(_Config):
    """The queue of momentum embeddings."""

    size: int = Field(2048, ge=1, description="pairs kept, one global batch at least; 65536 suits large runs")
    sharded: bool = Field(
        False, description="each process keeps a part of the pairs and sends it round: less memory, more traffic"
    )


class MomentumConfig(_Config):
    """The moving average of the encoders."""

    towers: Literal["own", "shared"] = Field(
        "own",
        description="of the momentum encoders: averages of their own, or shared: those that are trained, so that "
        "the heads alone are averaged; towers that are frozen are shared anyhow",
    )
    precision: Literal["engine", "bfloat16"] = Field(
        "engine", description="of the momentum encoders' arithmetic: engine.precision, or bfloat16"
    )
    decay: float = Field(0.999, ge=0, lt=1, description="share of the average that one step keeps")
    ramp: Literal["constant", "cosine"] = Field(
        "constant", description="the decay stays, or rises along a cosine to 1 at the end of the run"
    )


class RelationsConfig(_Config):
    """L_rel, instance-neighbourhood relations within groups of pairs (AAHR; Fu et al., CVPR 2023)."""

    weight: float = Field(1.0, ge=0, description="of the term; see loss.base.weight")
    start_step: int = Field(8000, ge=0, description="optimiser steps before the term counts")
    group: int = Field(
        0, ge=0, description="consecutive pairs of the global batch that see each other; 0: model.norm_group"
    )
    relevance: Literal["learned", "average"] = Field(
        "learned", description="of images and texts to each other: the average match, or that and an MLP"
    )
    tile: int = Field(16, ge=1, description="texts whose words are compared at a time; bounds memory alone")
    mask_weight: float = Field(1.0, ge=0, description="of relevance in the attention: 1 Flickr30K, 1.5 COCO")
    heads: int = Field(0, ge=0, description="attention heads over the nodes; 0: model.aahr.fragment_heads")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout in the attention layer")
    gcn_dropout: float = Field(0.6, ge=0, lt=1, description="dropout before each graph convolution")


class RegulariserConfig(_Config):
    """L_reg, which draws the fragments' relevance to the local embeddings' distances."""

    weight: float = Field(10.0, ge=0, description="of the term in the loss")
    start_step: int = Field(8000, ge=0, description="optimiser steps before the term counts")


class ConsensusLossConfig(_Config):
    """What the losses of a consensus-aware embedding count, against each other."""

    fused_weight: float = Field(3.0, ge=0, description="of the ranking loss on the fused embedding")
    instance_weight: float = Field(5.0, ge=0, description="of the ranking loss on the instance embedding")
    consensus_weight: float = Field(1.0, ge=0, description="of the ranking loss on the consensus embedding")
    divergence_weight: float = Field(2.0, ge=0, description="of the divergence of a pair's concept distributions")


class AhrlConfig(_Config):
    """AHRL, the adaptive hierarchical reinforcement loss of AMSPS (arXiv 2311.05425; docs/algorithm.md)."""

    weight: float = Field(1.0, ge=0, description="of the term; see loss.base.weight")
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


class LossConfig(_Config):
    """The terms of the loss. A framework has those that are its own; a weight of 0 leaves a term out."""

    base: BaseLossConfig = BaseLossConfig()
    ahrl: AhrlConfig = AhrlConfig()
    consensus: ConsensusLossConfig = ConsensusLossConfig()
    prototypes: PrototypeConfig = PrototypeConfig()
    momentum_contrast: MomentumContrastConfig = MomentumContrastConfig()
    relations: RelationsConfig = RelationsConfig()
    regulariser: RegulariserConfig = RegulariserConfig()
    contrast: ContrastConfig = ContrastConfig()
    queue: QueueConfig = QueueConfig()
    momentum: MomentumConfig = MomentumConfig()
