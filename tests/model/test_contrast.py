"""The baselines' module: CLIP's and SigLIP's loss as the papers' own pseudo-code has them, and their scale."""

import math
from typing import Literal

import pytest
import torch
from torch.nn.functional import cross_entropy, logsigmoid

from model.config import ContrastConfig
from model.errors import ModelError
from model.losses.contrast import Contrast
from tests.model.pairs import assert_same_gradients, keys_of, unit_rows

IDS = [*range(6)]


def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    images, captions = (unit_rows(6, 4, seed).requires_grad_() for seed in (0, 1))
    return images, captions


def loss_of(contrast: Contrast, images: torch.Tensor, captions: torch.Tensor) -> torch.Tensor:
    values = contrast(images, captions, torch.tensor(IDS), keys_of(images, IDS), keys_of(captions, IDS))
    assert values.shape == (6,)
    return values.mean()


def test_clip_is_the_symmetric_cross_entropy_with_its_learnable_scale() -> None:
    contrast = Contrast("clip", ContrastConfig()).double()
    images, captions = pairs()
    logits = contrast.log_scale.exp() * images @ captions.T
    labels = torch.arange(6)
    expected = (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2
    assert [name for name, _ in contrast.named_parameters()] == ["log_scale"]
    assert_same_gradients(loss_of(contrast, images, captions), expected, [images, captions, contrast.log_scale])


def test_siglip_is_the_sum_over_pairs_with_its_learnable_scale_and_bias() -> None:
    contrast = Contrast("siglip", ContrastConfig()).double()
    images, captions = pairs()
    assert contrast.bias is not None
    logits = contrast.log_scale.exp() * images @ captions.T + contrast.bias
    labels = 2 * torch.eye(6, dtype=torch.float64) - 1
    expected = -logsigmoid(labels * logits).sum() / 6
    inputs = [images, captions, contrast.log_scale, contrast.bias]
    assert_same_gradients(loss_of(contrast, images, captions), expected, inputs)


@pytest.mark.parametrize(
    ("kind", "config", "scale"),
    [
        ("clip", ContrastConfig(), 1 / 0.07),
        ("siglip", ContrastConfig(), 10.0),
        ("clip", ContrastConfig(initial_scale=3.0), 3.0),
        ("siglip", ContrastConfig(initial_scale=300.0), 300.0),
    ],
)
def test_scale_starts_where_the_recipe_says(
    kind: Literal["clip", "siglip"], config: ContrastConfig, scale: float
) -> None:
    assert Contrast(kind, config).scale().item() == pytest.approx(scale)


def test_clips_scale_is_bounded_and_comes_back() -> None:
    contrast = Contrast("clip", ContrastConfig(max_scale=20.0))
    with torch.no_grad():
        contrast.log_scale.fill_(math.log(50.0))
    scale = contrast.scale()
    assert scale.item() == pytest.approx(20.0)
    scale.backward()
    assert contrast.log_scale.grad is not None
    assert contrast.log_scale.grad.item() == pytest.approx(20.0)


def test_a_start_above_the_bound_is_refused() -> None:
    with pytest.raises(ModelError, match=r"initial_scale: 200 is above max_scale 100"):
        Contrast("clip", ContrastConfig(initial_scale=200.0))
