"""Whole methods, small enough to compare the gradients of a step in many ways; all terms are on from step 0."""

import json
from pathlib import Path
from typing import Any

import torch

from model.frameworks import Framework
from model.tokenizer import build_tokenizer
from trainer.config import Recipe
from trainer.engine import build_encoders, build_framework

METHODS = {"clip": 0, "siglip": 0, "aahr": 0, "amsps": 0, "aahr+amsps": 4}
"""Names, and of how many concepts."""
ROWS, STEPS = 16, 4
"""Pairs of a global batch; steps, of which the last two see a full queue."""
WORDS = ("dog", "cat", "red", "run")
Inputs = tuple[torch.Tensor, None, None, torch.Tensor, torch.Tensor, torch.Tensor]


def write_concepts(path: Path) -> None:
    together = [[0, 1, 2, 1], [1, 0, 1, 1], [2, 1, 0, 0], [1, 1, 0, 0]]
    listed = [{"word": word, "count": 4} for word in WORDS]
    path.write_text(json.dumps({"format_version": 1, "graph": {}, "concepts": listed, "co_occurrence": together}))


def recipe_of(method: str, concepts: Path, dropout: float = 0.0, **engine: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "data": {"global_batch_size": ROWS},
            "model": {
                "framework": method,
                "architecture": "itm-tiny",
                "embed_dim": 16,
                "norm_group": 2,
                "aahr": {"fragment_heads": 2, "pooling_heads": 2, "dropout": dropout},
                "consensus": {"concepts": str(concepts) if METHODS[method] else None},
            },
            "loss": {
                "base": {"all_negatives_steps": 0},
                "prototypes": {"count": 5, "start_step": 0},
                "momentum_contrast": {"start_step": 0},
                "relations": {"start_step": 0, "group": 8, "heads": 2, "dropout": dropout, "gcn_dropout": dropout},
                "regulariser": {"start_step": 0},
                "queue": {"size": 2 * ROWS},
                "ahrl": {"candidates": 4, "quantile": 0.9},
            },
            "optimizer": {"gradient_clipping": 0.0},
            "engine": engine,
        }
    )


def framework_of(recipe: Recipe) -> Framework:
    return build_framework(build_encoders(recipe.model, 0), recipe, steps_per_epoch=4, total_steps=20).train()


def batch(step: int, concepts: int) -> Inputs:
    """A global batch whose last two pairs only fill it, and two of whose pairs are of one image."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randint(256, (ROWS, 32, 32, 3), dtype=torch.uint8, generator=generator)
    text = build_tokenizer("itm-tiny")([f"{WORDS[place % 4]} {step} {place}" for place in range(ROWS)])
    named = torch.arange(ROWS).unsqueeze(1) % 4 == torch.arange(4)
    text = torch.cat([text, named[:, :concepts].long()], dim=1)
    ids = ROWS * step + torch.arange(ROWS)
    ids[3] = ids[9]
    return images, None, None, text, ids, torch.arange(ROWS) < ROWS - 2
