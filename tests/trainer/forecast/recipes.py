"""Recipes whose every term is on, and batches for them."""

from typing import Any

import torch

from trainer.config import Recipe
from trainer.forecast.step import Inputs

STEPS = 10


def whole_recipe(batch: int = 8, **engine: Any) -> Recipe:
    """AAHR on the smallest towers, without dropout."""
    quiet = {"start_step": 0, "dropout": 0.0}
    return Recipe.model_validate(
        {
            "data": {"global_batch_size": batch},
            "model": {
                "architecture": "itm-tiny",
                "embed_dim": 32,
                "norm_group": max(2, batch // 8),
                "aahr": {"fragment_heads": 2, "pooling_heads": 2, "dropout": 0.0},
            },
            "loss": {
                "prototypes": {"count": 6, "start_step": 0},
                "momentum_contrast": {"start_step": 0},
                "relations": quiet | {"gcn_dropout": 0.0},
                "regulariser": {"start_step": 0},
                "queue": {"size": max(40, batch)},
            },
            "engine": engine,
        }
    )


def drawn(inputs: Inputs, pairs: int) -> tuple[torch.Tensor | None, ...]:
    """A batch of pairs unlike each other, each caption with words."""
    images, _, _, text, *_ = inputs.make(pairs)
    assert images is not None
    assert text is not None
    torch.manual_seed(1)
    pixels, words = torch.randint_like(images, 256), torch.randint_like(text, 1, 100)
    words[:, -1] = 100  # the largest ends a text
    return pixels, None, None, words, torch.arange(pairs), torch.ones(pairs, dtype=torch.bool)
