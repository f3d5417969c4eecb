"""Momentum encoders: an exponential moving average of the encoders that are trained."""

import math
from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Generic, TypeVar

import torch
from torch import nn

from model.config import MomentumConfig

M = TypeVar("M", bound=nn.Module)


class MomentumCopy(nn.Module, Generic[M]):
    """A copy of a module that follows it by `update` and takes no gradient (MoCo, He et al., CVPR 2020, eq. 2).

    Its weights and buffers are in the state dict, under `module.`. It stays in evaluation mode whatever
    mode the modules around it are put in: no dropout, and batch norm by the averaged running statistics.
    """

    module: M

    def __init__(self, online: M, instead: Mapping[nn.Module, nn.Module] | None = None) -> None:
        """Starts equal to `online`, whose weights must have been loaded; see `reset`.

        Modules inside of it that are keys of `instead` are not copied: their values, without weights, are there.
        """
        super().__init__()
        known = {id(module): other for module, other in (instead or {}).items()}
        self.module = deepcopy(online, known).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "MomentumCopy[M]":
        """Stay in evaluation mode."""
        return super().train(False)

    def reset(self, online: M) -> None:
        """Become equal to `online`."""
        self.update(online, 0.0)

    @torch.no_grad()
    def update(self, online: M, decay: float) -> None:
        """`self <- decay * self + (1 - decay) * online` in place, after every applied optimiser step.

        Buffers are averaged, too; those that are not floating point are copied. Under ZeRO-3 each rank
        averages its own part of every weight, without any exchange.
        """
        parameters, buffers = dict(online.named_parameters()), dict(online.named_buffers())
        own = [_local(parameter) for parameter in self.module.parameters()]
        theirs = [_local(parameters[name]) for name, _ in self.module.named_parameters()]
        # 1 - decay is lost in a bfloat16 average: nothing would move
        assert all(tensor.dtype in (torch.float32, torch.float64) for tensor in own)
        lerp(own, [source.to(target.dtype) for target, source in zip(own, theirs, strict=True)], 1 - decay)
        for name, target in self.module.named_buffers():
            source = buffers[name]
            if target.is_floating_point():
                # attention masks are buffers with infinities, between which there is no average
                target.copy_(torch.where(target == source, target, target.lerp(source, 1 - decay)))
            else:
                target.copy_(source)


def lerp(targets: list[torch.Tensor], sources: Iterable[torch.Tensor], weight: float) -> None:
    """`target + weight * (source - target)` in place, all tensors in few kernels."""
    torch._foreach_lerp_(targets, list(sources), weight)


def _local(parameter: nn.Parameter) -> torch.Tensor:
    """What this rank holds of a weight: all of it, or its part where DeepSpeed's ZeRO-3 has cut it up."""
    part: torch.Tensor | None = getattr(parameter, "ds_tensor", None)
    if part is None:
        return parameter.detach()
    assert parameter.numel() == 0, "a weight that is gathered now would go stale"
    return part.detach()


def momentum_decay(config: MomentumConfig, step: int, total_steps: int) -> float:
    """The decay of the average after optimiser step `step`, counted from 0, of `total_steps`.

    With the cosine ramp it rises from `config.decay` to 1 at the end of the run (BYOL, Grill et al.,
    NeurIPS 2020, section 3.2; MoCo v3, Chen et al., ICCV 2021).
    """
    if config.ramp == "constant":
        return config.decay
    progress = min(step / max(total_steps, 1), 1.0)
    return 1 - (1 - config.decay) * (1 + math.cos(math.pi * progress)) / 2
