"""Loss scaling within an autocast region, and what stays float32 around it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from model.gradient_scale import GROWS_AFTER, GradientScale
from model.step import Step
from tests.model.test_methods import batch, concepts, method  # noqa: F401  (a fixture)


class Region(nn.Module):
    """Weights that are multiplied in float16."""

    def __init__(self, scale: GradientScale | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.scale = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)), scale
        self.inner[0].bias.requires_grad_(False)
        if scale is not None:
            scale.watch(self.inner)

    def forward(self, x: torch.Tensor) -> Any:
        with torch.autocast("cpu", torch.float16):
            y = self.inner(x)
        return y if self.scale is None else self.scale.enter((y, [y]))[1][0]


def gradients(module: Region, factor: float) -> torch.Tensor:
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    (module(x).float().sum() * factor).backward()
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


def test_gradients_that_float16_does_not_hold_arrive_unscaled() -> None:
    tiny = 2.0**-30
    assert not gradients(Region(None), tiny).any(), "the case is one in which scaling is needed"
    scaled = gradients(Region(GradientScale()), tiny)
    torch.testing.assert_close(scaled, gradients(Region(None), 1.0) * tiny, rtol=1e-2, atol=tiny / 100)


def test_an_overflow_reaches_the_weights() -> None:
    assert not gradients(Region(GradientScale()), 100.0).isfinite().all()


def test_the_scale_halves_on_overflow_and_doubles_now_and_then() -> None:
    scale = GradientScale()
    start = scale.value
    scale.update(applied=False)
    assert scale.value == start / 2
    for _ in range(GROWS_AFTER - 1):
        scale.update(applied=True)
    resumed = GradientScale()
    resumed.load_state_dict(scale.state_dict())
    assert resumed.value == start / 2
    resumed.update(applied=True)
    assert resumed.value == start
    for _ in range(100):
        resumed.update(applied=False)
    assert resumed.value == 1


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_losses_sinkhorn_and_queue_are_computed_in_float32(
    precision: torch.dtype,
    concepts: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A whole step: no term sees an autocast, nor a tensor of less than float32 but the tokens of bfloat16."""
    framework = method("aahr+amsps", concepts, autocast=precision)
    seen: list[torch.dtype] = []
    sum_up = framework._sum

    def watched(step: Step) -> dict[str, torch.Tensor]:
        assert not torch.is_autocast_enabled("cpu")
        for view in step.views:
            assert view.memory is not None
            for pairs in (view.own, view.batch, view.memory.own, view.memory.batch, view.memory.queue):
                seen.extend((pairs.images.dtype, pairs.texts.dtype))
        assert step.concepts is not None
        seen.extend((step.concepts[0].dtype, step.image.local.dtype, step.text.local.dtype, step.weight.dtype))
        return sum_up(step)

    monkeypatch.setattr(framework, "_sum", watched)
    monkeypatch.setattr(
        "model.terms.prototypes.sinkhorn",
        lambda scores, *rest: seen.append(scores.dtype) or torch.softmax(scores, dim=-1),
    )
    for step in range(5):
        losses = framework(*batch(step, labels=4), step)
        losses["loss"].backward()
        framework.advance(step)
    assert {"prototypes", "relations", "ahrl", "momentum_contrast"} <= losses.keys()
    assert set(seen) == {torch.float32}
    assert {value.dtype for value in losses.values()} == {torch.float32}
    assert {framework.queue.images.dtype, framework.terms["ranking"].rankers[0].agreement.histogram.dtype} == {
        torch.float32
    }
    assert {p.grad.dtype for p in framework.parameters() if p.grad is not None} == {torch.float32}
