"""The recipe: every setting of a run, typed. Defaults live here and in the model's own settings."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from model.config import LossConfig, ModelConfig


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class RunConfig(_Config):
    """Where the run lives and what it starts from."""

    dir: str = Field("", description="folder of the run; a second call with the same folder resumes it")
    seed: int = Field(0, ge=0, lt=2**32, description="decides weights, the order of samples and every augmentation")
    init_from: str | None = Field(None, description="a run or checkpoint of ours whose weights to start from")
    max_minutes: float | None = Field(
        None, gt=0, description="from the program's start; then the run saves and exits with 85, to be called again"
    )
    sentinel_every: int = Field(
        500, ge=1, description="steps between two looks whether all ranks still hold the same; also before saving"
    )
    watchdog_minutes: float | None = Field(
        15.0, gt=0, description="a step that takes longer has every rank's stacks printed, once; null: none"
    )


class PartConfig(_Config):
    """One data set of a mixture."""

    path: str = Field(description="folder of a training split")
    weight: float = Field(1.0, gt=0, description="repeats an epoch, or share of the batches; see data.mix")
    captions: Literal["one", "first", "all"] | None = Field(None, description="null: as data.captions")


class CacheConfig(_Config):
    """Where what lies behind URLs is kept on each node."""

    dir: str | None = Field(None, description="folder on a local disk; null: $ITM_CACHE or ~/.cache/itm")
    max_gb: float = Field(128.0, gt=0, description="its bound in GB; what was not used for longest goes first")
    timeout: float = Field(60.0, gt=0, description="seconds without an answer before an attempt has failed")
    attempts: int = Field(5, ge=1, description="attempts of each transfer, with growing pauses")


class DataConfig(_Config):
    """Folders of shards, as `itm shards` writes them; a folder may be a URL that fsspec opens."""

    train: str | list[PartConfig] = Field(
        "", description="folder of the training split, or a list of {path, weight, captions} to be mixed"
    )
    mix: Literal["epoch", "sampling"] = Field(
        "epoch", description="weights in data.train are repeats an epoch, or shares of the batches"
    )
    val: str | None = Field(None, description="folder of the split on which the best checkpoint is chosen")
    captions: Literal["one", "first", "all"] = Field(
        "one", description="one drawn a visit, always the first, or all, each a visit of its own"
    )
    last_batch: Literal["drop", "pad"] = Field(
        "drop", description="what does not fill an epoch's last batch is dropped, or padded with a mask"
    )
    max_undecodable: float = Field(
        0.01, ge=0, le=1, description="share of samples that may not decode before the run stops"
    )
    cache: CacheConfig = CacheConfig()
    mask_words: float = Field(
        0.2, ge=0, le=1, description="share of the words touched in training, of those that a transformer reads"
    )
    drop_regions: float = Field(0.2, ge=0, lt=1, description="share of precomputed regions left out in training")
    min_crop_scale: float = Field(0.9, gt=0, le=1, description="smallest share of the area a crop keeps")
    workers: int = Field(0, ge=0, description="loader processes a rank; 0 loads in the training process")
    global_batch_size: int = Field(128, ge=2, description="pairs a step, over all processes")

    @model_validator(mode="before")
    @classmethod
    def _train_is_known(cls, values: Any) -> Any:
        # here, as a union's own errors name its members
        train = values.get("train", "") if isinstance(values, dict) else ""
        if not isinstance(train, str | list):
            raise ValueError(f"train: {train!r}: give a folder's path, or a list of {{path, weight, captions}}")
        return values


class OptimizerConfig(_Config):
    """AdamW (Loshchilov and Hutter, ICLR 2019)."""

    lr: float = Field(5e-4, gt=0, description="peak learning rate, of the heads")
    weight_decay: float = Field(1e-4, ge=0, description="not applied to norms, biases and other vectors")
    betas: Annotated[
        list[Annotated[float, Field(ge=0, lt=1)]],
        Field(min_length=2, max_length=2, description="decay of the first and second moment"),
    ] = [0.9, 0.98]
    eps: float = Field(1e-8, gt=0, description="added to the root of the second moment")
    tower_lr_scale: float = Field(1.0, ge=0, description="learning rate of the towers, relative to the heads'")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="factor on the towers' rate from each block to the one before it; 1: all alike"
    )
    tower_start_step: int = Field(0, ge=0, description="optimiser steps before the towers learn, too")
    gradient_clipping: float = Field(2.0, ge=0, description="largest gradient norm; 0 clips nothing")


class ScheduleConfig(_Config):
    """Linear warm-up, then a cosine down to `final_lr_scale` of the learning rate, or drops to tenths of it."""

    epochs: float = Field(10.0, gt=0, description="length of the run, in passes over data.train")
    warmup_steps: int = Field(100, ge=0, description="steps over which the learning rate rises")
    final_lr_scale: float = Field(0.0, ge=0, le=1, description="last learning rate, relative to the peak")
    drop_epochs: list[Annotated[float, Field(gt=0)]] = Field(
        [], description="passes after which the rate falls to a tenth, each time, instead of along the cosine"
    )


class EngineConfig(_Config):
    """How DeepSpeed runs it."""

    zero_stage: Literal[0, 1, 2, 3] = Field(
        2, description="what ranks share out: 1 optimiser state, 2 also gradients, 3 also weights; 0 nothing"
    )
    micro_batch_size: int | None = Field(
        None, ge=1, description="pairs that a process encodes at once, at the same losses; null: all of its share"
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="of the towers' and heads' arithmetic; weights, optimiser and losses stay float32"
    )
    max_skipped_steps: int = Field(
        50, ge=1, description="steps in a row that float16's loss scaling may skip before the run stops"
    )
    offload_optimizer: Literal["cpu"] | None = Field(
        None, description="where AdamW's state and step are instead of the GPU; ZeRO 1 to 3"
    )
    offload_parameters: Literal["cpu"] | None = Field(
        None, description="where weights are kept instead of the GPU; ZeRO 3"
    )

    @model_validator(mode="after")
    def _can_offload(self) -> Self:
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("offload_optimizer: needs engine.zero_stage 1, 2 or 3")
        if self.offload_parameters and self.zero_stage != 3:
            raise ValueError("offload_parameters: needs engine.zero_stage=3")
        return self


class LogConfig(_Config):
    every_steps: int = Field(10, ge=1, description="steps between two lines of metrics.jsonl")
    tensorboard: bool = Field(True, description="write run.dir/tensorboard")
    wandb: Literal["offline", "online"] | None = Field(
        None, description="Weights & Biases: offline writes run.dir/wandb, for `wandb sync`; online also sends it"
    )
    trace_step: int | None = Field(
        None, ge=1, description="the step to trace into run.dir/trace, as torch.profiler sees it; null: none"
    )


class EvaluationConfig(_Config):
    every_epochs: float = Field(
        1.0, gt=0, description="epochs between two evaluations on val; each also writes a checkpoint"
    )
    batch_size: int = Field(128, ge=2, description="images embedded at once, a process")


class CheckpointConfig(_Config):
    every_epochs: float = Field(1.0, gt=0, description="epochs between two checkpoints")
    keep_last: int = Field(2, ge=1, description="newest checkpoints kept, beside the best on val")


class Recipe(_Config):
    """A whole run."""

    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    engine: EngineConfig = EngineConfig()
    log: LogConfig = LogConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @model_validator(mode="after")
    def _groups_fill_the_batch(self) -> Self:
        if self.model.has_aahr and self.data.global_batch_size % self.model.norm_group:
            raise ValueError(
                f"model.norm_group: {self.model.norm_group} does not divide data.global_batch_size "
                f"{self.data.global_batch_size}"
            )
        return self
