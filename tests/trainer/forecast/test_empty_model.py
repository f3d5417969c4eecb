"""How many numbers a model holds, against a count by hand, without any memory for them."""

from pathlib import Path

import torch

from trainer.config import Recipe
from trainer.forecast.empty_model import Counts, count, empty_framework


def counted(**sections: object) -> Counts:
    with empty_framework(Recipe.model_validate(sections), 10, 100) as framework:
        return count(framework)


def block(width: int) -> int:
    """Two norms, attention, and an MLP four times as wide, with their biases."""
    return 4 * width + (4 * width * width + 4 * width) + (8 * width * width + 5 * width)


def vit_b_32() -> int:
    image = 768 * 3 * 32 * 32 + 768 + 50 * 768 + 2 * 768 + 12 * block(768) + 2 * 768 + 768 * 512
    text = 49408 * 512 + 77 * 512 + 12 * block(512) + 2 * 512 + 512 * 512
    return image + text


def test_clip_on_vit_b_32() -> None:
    counts = counted(model={"framework": "clip"})
    assert counts.trained == vit_b_32() + 1  # the learned scale
    assert (counts.frozen, counts.momentum, counts.queue_rows) == (0, 0, 0)
    assert counts.largest == 49408 * 512


def test_frozen_towers_are_neither_trained_nor_copied() -> None:
    frozen = {"freeze": "all"}
    free, held = (counted(model={"embed_dim": 64, "image": config, "text": config}) for config in ({}, frozen))
    assert held.frozen == vit_b_32()
    assert free.trained - held.trained == free.momentum - held.momentum == vit_b_32()


def test_prototypes_and_queue() -> None:
    queue = {"size": 300}
    learned, averaged = (
        counted(model={"embed_dim": 64}, loss={"prototypes": {"count": 11, "update": update}, "queue": queue})
        for update in ("gradient", "average")
    )
    assert learned.prototypes == 11 * 64
    assert averaged.prototypes == 0
    assert averaged.trained == learned.trained - 11 * 64
    assert averaged.bank - learned.bank == 4 * 11 * 64
    assert learned.queue_rows == 2 * 4 * 300 * 64
    assert learned.queue_notes == 3 * 8 * 300 + 2 * 8  # ids, positions and steps; how many, and where next


def test_nothing_is_drawn_and_the_process_is_left_as_it_was() -> None:
    tensor = torch.nn.Linear(2, 2)
    before = torch.get_rng_state()
    counted(model={"framework": "siglip", "architecture": "ViT-L-14"})
    assert torch.equal(torch.get_rng_state(), before)
    assert tensor.to(torch.float64).weight.sum().isfinite(), "tensors made afterwards are real"
    assert not torch.__future__.get_overwrite_module_params_on_conversion()


def test_a_transformer_and_regions(tmp_path: Path) -> None:
    from tests.model.hub import save_bert

    bert = {"name": str(save_bert(tmp_path / "bert")), "max_length": 12}
    counts = counted(
        model={
            "embed_dim": 64,
            "image": {"inputs": "regions", "region_width": 24},
            "text": {"towers": "transformer", "transformer": bert},
        }
    )
    plain = counted(
        model={
            "embed_dim": 64,
            "image": {"inputs": "regions", "region_width": 25},
            "text": {"towers": "transformer", "transformer": bert | {"freeze": "all"}},
        }
    )
    # 20 words, 24 places and 2 kinds, a norm; two blocks of width 16 with MLPs of 24
    one = 4 * 16 * 17 + 2 * 32 + (16 * 24 + 24) + (24 * 16 + 16)
    assert plain.frozen == (20 + 24 + 2) * 16 + 32 + 2 * one
    assert counts.momentum > plain.momentum
