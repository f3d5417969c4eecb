"""Useful arithmetic, against a count by hand, and the peaks of devices."""

from typing import Any

import pytest
import torch

import model  # noqa: F401  (lets torchvision, and so open_clip, import beside a CPU build of torch)
from model.config import ModelConfig
from trainer.flops import arithmetic_of, peak_tflops, step_flops

PAIRS = 6


def counted(pairs: int = PAIRS, **sections: Any) -> float:
    config = ModelConfig.model_validate({"framework": "clip", "architecture": "ViT-B-32", **sections})
    images = torch.empty(pairs, 224, 224, 3, dtype=torch.uint8, device="meta")
    return step_flops(config, images, None, None, torch.empty(pairs, 77, dtype=torch.int64, device="meta"))


def transformer(tokens: int, width: int, layers: int) -> int:
    """Multiplications with addition, forward, of one item: queries, keys, values, output; attention; the MLP."""
    projections = 4 * tokens * width * width
    attention = 2 * tokens * tokens * width
    mlp = 2 * tokens * width * 4 * width
    return layers * (projections + attention + mlp)


PATCHES = 49 * (3 * 32 * 32) * 768
IMAGE = PATCHES + transformer(50, 768, 12) + 768 * 512
TEXT = transformer(77, 512, 12) + 512 * 512


def test_forward_and_backward_of_both_towers_are_counted() -> None:
    # the backward pass is that for the inputs and that for the weights, but pixels want no gradient
    assert counted() == 2 * PAIRS * (3 * (IMAGE + TEXT) - PATCHES)
    assert counted(2 * PAIRS) == 2 * counted()


def test_frozen_towers_have_no_backward() -> None:
    assert counted(image={"freeze": "all"}, text={"freeze": "all"}) == 2 * PAIRS * (IMAGE + TEXT)


def test_what_is_computed_again_does_not_count() -> None:
    again = {"gradient_checkpointing": True}
    assert counted(image=again, text=again) == counted()


def test_heads_count_and_no_number_is_drawn() -> None:
    state = torch.get_rng_state()
    assert counted(framework="aahr", norm_group=PAIRS) > counted()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("name", "arithmetic", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989),
        ("NVIDIA H100 80GB HBM3", "tf32", 494),
        ("NVIDIA H100 PCIe", "bfloat16", 756),
        ("NVIDIA H100 NVL", "bfloat16", 835),
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312),
        ("NVIDIA A100-PCIE-40GB", "float32", 19.5),
        ("Tesla V100-SXM2-16GB", "float32", 15.7),
        ("Tesla V100-SXM2-16GB", "bfloat16", None),
        ("Tesla V100-SXM2-16GB", "float16", 125),
        ("NVIDIA H100 80GB HBM3", "float16", 989),
        ("NVIDIA L40S", "bfloat16", 362),
        ("NVIDIA A10G", "bfloat16", None),  # another chip than the A10
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bfloat16", None),
        ("Some Accelerator", "bfloat16", None),
    ],
)
def test_peaks(name: str, arithmetic: Any, peak: float | None) -> None:
    assert peak_tflops(name, arithmetic) == peak


def test_float32_is_tf32_where_torch_may(monkeypatch: pytest.MonkeyPatch) -> None:
    assert arithmetic_of("bfloat16") == "bfloat16"
    assert arithmetic_of("float16") == "float16"
    assert arithmetic_of("float32") == "float32"
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert arithmetic_of("float32") == "tf32"
