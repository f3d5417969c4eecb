"""Which parameters decay, and which learn at the towers' rate."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from trainer.config import OptimizerConfig

TOWERS = ("encoders.image_tower.", "encoders.text_tower.")


def parameter_groups(
    parameters: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig
) -> list[dict[str, Any]]:
    """Groups for AdamW: {towers, the rest} x {decay, none}, empty ones left out.

    Norms, biases and other vectors do not decay. Each group carries `lr_scale` relative to `optimizer.lr`.
    A parameter that takes no gradient stands in no group.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in parameters:
        if parameter.requires_grad:
            tower, decays = name.startswith(TOWERS), parameter.ndim >= 2
            groups.setdefault((tower, decays), []).append(parameter)
    return [
        {
            "params": members,
            "weight_decay": config.weight_decay if decays else 0.0,
            "lr": config.lr,
            "lr_scale": config.tower_lr_scale if tower else 1.0,
        }
        for (tower, decays), members in sorted(groups.items(), key=lambda item: item[0])
    ]
