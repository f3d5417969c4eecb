"""Dynamic loss scaling for float16 (Micikevicius et al., ICLR 2018), kept within the encoders."""

from typing import Any, TypeVar

import torch
from torch import nn

from model.encodings import map_tensors

T = TypeVar("T")

START, GREATEST, LEAST = 2.0**16, 2.0**24, 1.0
GROWS_AFTER = 2000
"""Applied steps in a row, as torch's own scaler has it."""


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, scale: float) -> torch.Tensor:
        ctx.scale = scale
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad_outputs[0] * ctx.scale, None


class GradientScale:
    """Scales gradients where they enter an autocast region and scales them back where they reach its weights.

    float16 holds no gradient below 6e-8. Losses and weights are outside of the region and float32, so neither
    they nor the engine, its norms and its clipping see the scale (ours): it is the same at every ZeRO stage. What
    overflowed reaches the weights as infinity, upon which the step is to be skipped.
    """

    def __init__(self) -> None:
        self.value, self.applied_in_a_row = START, 0

    def watch(self, weights: nn.Module) -> None:
        """Scale back the gradients of a module's weights. Once, before the engine is made."""
        for parameter in weights.parameters():
            if parameter.requires_grad:
                parameter.register_hook(self._leave)

    def _leave(self, gradient: torch.Tensor) -> torch.Tensor:
        return gradient / self.value

    def enter(self, made: T) -> T:
        """What the region has made, a tensor or dataclasses, tuples and lists of them, as float32.

        Its gradient is multiplied on the way back.
        """
        scaled: T = map_tensors(lambda one: self._enter(one[0]), [made])
        return scaled

    def _enter(self, made: torch.Tensor) -> torch.Tensor:
        if not made.is_floating_point():
            return made
        # float32 first: in float16 the gradient would be too small before it is multiplied
        scaled: torch.Tensor = _Scaled.apply(made.float(), self.value)  # type: ignore[no-untyped-call]
        return scaled

    def update(self, applied: bool) -> None:
        """After each step: halve where the gradients overflowed, else double now and then."""
        if not applied:
            self.value, self.applied_in_a_row = max(LEAST, self.value / 2), 0
            return
        self.applied_in_a_row += 1
        if self.applied_in_a_row == GROWS_AFTER:
            self.value, self.applied_in_a_row = min(GREATEST, self.value * 2), 0

    def state_dict(self) -> dict[str, float]:
        return {"value": self.value, "applied_in_a_row": self.applied_in_a_row}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.value, self.applied_in_a_row = state["value"], int(state["applied_in_a_row"])
