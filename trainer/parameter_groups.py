"""Which parameters decay, and at which rate each learns."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from model.towers.tower import Backbone
from trainer.config import OptimizerConfig

TOWERS = ("encoders.image_tower.", "encoders.text_tower.")


def parameter_groups(
    parameters: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig, distances: dict[str, int] | None = None
) -> list[dict[str, Any]]:
    """Groups for AdamW: {towers' layers, the rest} x {decay, none}, empty ones left out.

    Norms, biases and other vectors do not decay. Each group carries `lr_scale` relative to `optimizer.lr`: the
    towers' own, times `layer_decay` to the power of a layer's distance from its tower's end (`layer_distances`;
    Clark et al., ELECTRA, ICLR 2020). `tower` says whether it waits for `tower_start_step`. A parameter that
    takes no gradient stands in no group.
    """
    groups: dict[tuple[bool, float, bool], list[nn.Parameter]] = {}
    for name, parameter in parameters:
        if parameter.requires_grad:
            tower, decays = name.startswith(TOWERS), parameter.ndim >= 2
            layer = config.layer_decay ** (distances or {}).get(name, 0)
            scale = config.tower_lr_scale * layer if tower else 1.0
            groups.setdefault((tower, scale, decays), []).append(parameter)
    return [
        {
            "params": members,
            "weight_decay": config.weight_decay if decays else 0.0,
            "lr": config.lr,
            "lr_scale": scale,
            "tower": tower,
        }
        for (tower, scale, decays), members in sorted(groups.items(), key=lambda item: item[0])
    ]


def layer_distances(module: nn.Module) -> dict[str, int]:
    """Each tower parameter's distance from its tower's end: 0 what follows the last block, 1 the last block.

    A tower's embeddings are one further than its first block. What is in no tower is left out.
    """
    distances: dict[str, int] = {}
    for prefix, part in module.named_modules():
        if isinstance(part, Backbone):
            depths, blocks = part.depths()
            distances |= {f"{prefix}.{name}": blocks + 1 - depth for name, depth in depths.items()}
    return distances
