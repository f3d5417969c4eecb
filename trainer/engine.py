"""The DeepSpeed engine around a framework, and the seeds that make a run a function of its recipe."""

from typing import Any

import torch
from torch import nn

from model.aahr.pooling import GlobalGuidedPooling
from model.config import ModelConfig
from model.encoders import DualEncoder
from model.frameworks import Framework
from trainer.config import Recipe
from trainer.deepspeed_setup import deepspeed_config
from trainer.distributed import World
from trainer.parameter_groups import layer_distances, parameter_groups
from trainer.precision import AUTOCAST

_INIT = 0x1717  # apart from the seeds of steps
_PART = 0x9E3779B97F4A7C15  # odd and irregular: no small step, rank and part give another's seed


def build_encoders(config: ModelConfig, seed: int, pretrained: bool = True) -> DualEncoder:
    """The encoders with weights that depend on the seed alone, the same on every rank."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + _INIT)
        return DualEncoder(config, pretrained)


def build_framework(encoders: DualEncoder, recipe: Recipe, steps_per_epoch: int, total_steps: int) -> Framework:
    """The framework with weights of its own that depend on the seed alone, the same on every rank."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.run.seed + _INIT + 1)
        return Framework(
            encoders,
            recipe.model,
            recipe.loss,
            steps_per_epoch=steps_per_epoch,
            total_steps=total_steps,
            seed=recipe.run.seed,
            autocast=AUTOCAST[recipe.engine.precision],
        )


def seed_step(seed: int, step: int, rank: int, part: int = 0) -> None:
    """Key dropout by (seed, step, rank): a resumed run draws what an uninterrupted one would have.

    `part` tells the draws within a step apart.
    """
    torch.manual_seed((((seed * 1_000_003 + step) * 65_536 + rank) + part * _PART) % 2**64)


def initialize(framework: Framework, recipe: Recipe, world: World, device: torch.device) -> Any:
    """Wrap the framework in a DeepSpeed engine with AdamW; weights must be loaded before."""
    import deepspeed
    from deepspeed.utils import set_z3_leaf_modules

    framework.to(device)
    optimizer = torch.optim.AdamW(
        parameter_groups(framework.named_parameters(), recipe.optimizer, layer_distances(framework)),
        betas=(recipe.optimizer.betas[0], recipe.optimizer.betas[1]),
        eps=recipe.optimizer.eps,
        fused=True,  # one pass over memory: benchmarks/optimizer.py
    )
    if recipe.engine.zero_stage == 3:
        # these read a weight of a module inside without calling it, past the hook that would gather it
        set_z3_leaf_modules(framework, [nn.MultiheadAttention, nn.TransformerEncoderLayer, GlobalGuidedPooling])
    trained = sum(weight.numel() for weight in framework.parameters() if weight.requires_grad)
    engine, *_ = deepspeed.initialize(
        model=framework, optimizer=optimizer, config=deepspeed_config(recipe, world.size, trained)
    )
    return engine


def set_learning_rate(engine: Any, lr: float, *, towers_rest: bool = False) -> None:
    """Set the rate of every group to `lr` times its own scale, or, of the towers, to 0 while they rest."""
    for group in engine.optimizer.param_groups:
        group["lr"] = 0.0 if towers_rest and group["tower"] else lr * group["lr_scale"]


def settle_weights(engine: Any) -> None:
    """Wait until this step's changes of the weights are made, at stage 3 on a GPU; elsewhere nothing.

    DeepSpeed gathers a parameter on a stream of its own, which does not wait for the one that changes its parts.
    """
    if engine.zero_optimization_stage() == 3 and engine.device.type == "cuda":
        torch.cuda.current_stream(engine.device).synchronize()
