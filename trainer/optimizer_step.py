"""The optimiser's step: whether it was applied, and what is to be known of its gradients."""

from dataclasses import dataclass
from typing import Any

import torch

from model.gradient_scale import GradientScale
from trainer.errors import RunError


@dataclass(frozen=True)
class Applied:
    """What became of one step, the same on all ranks."""

    applied: bool
    bad_gradients: torch.Tensor
    """() bool on the device: gradients that are not finite and should be."""


class OptimizerStep:
    """Steps the engine's optimiser and counts the steps that it skipped.

    With a gradient scale an overflow is expected now and then: the step is skipped and the scale halved. Without
    one, gradients that are not finite are an error.
    """

    def __init__(self, engine: Any, scale: GradientScale | None, max_skipped: int, skipped: int = 0) -> None:
        """`max_skipped` in a row are too many; `skipped` is what a resumed run has skipped before."""
        self.engine, self.scale, self.max_skipped, self.skipped = engine, scale, max_skipped, skipped
        self.grad_norm: torch.Tensor | float = 0.0
        """Of the last step's gradients over the global batch, before clipping."""
        self._in_a_row = 0

    def __call__(self, step: int) -> Applied:
        """Between `backward` and all that follows an applied step. Raises `RunError` on every rank."""
        bad = self._screen()
        self.engine.step()
        if bad is None:
            applied: bool = self.engine.was_step_applied()
            self.grad_norm = self.engine.get_global_grad_norm()
            bad = torch.full((), not applied, device=self.engine.device)  # a copy from the host would wait
        else:
            # a scale cannot do without knowing; DeepSpeed, under ZeRO-1 to 3, always waits to know
            applied = self.scale is None or not bool(bad)
        if self.scale is None:
            return Applied(applied, bad)
        self._count(step, applied, self.scale.value)
        self.scale.update(applied)
        return Applied(applied, torch.zeros_like(bad))

    def _count(self, step: int, applied: bool, scale: float) -> None:
        self.skipped += not applied
        self._in_a_row = 0 if applied else self._in_a_row + 1
        if self._in_a_row >= self.max_skipped:
            raise RunError(
                f"step {step}: skipped {self._in_a_row} times in a row (engine.max_skipped_steps): float16 "
                f"gradients are not finite, lastly at a scale of {scale:g}; resume with engine.precision=bfloat16 "
                "or a lower optimizer.lr"
            )

    @torch.no_grad()
    def _screen(self) -> torch.Tensor | None:
        """Under ZeRO-0 () bool on the device, whether the gradients are not finite; None under ZeRO-1 to 3.

        The optimiser reads it on the device and leaves weights and moments alone, as DeepSpeed does elsewhere.
        """
        if self.engine.zero_optimization_stage() > 0:
            return None
        gradients = [parameter.grad for parameter in self.engine.module.parameters() if parameter.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        bad: torch.Tensor = ~norm.isfinite()
        self.grad_norm = norm
        self.engine.optimizer.found_inf = bad.float()  # where torch's own gradient scaler puts it, too
        return bad
