"""The arithmetic that a step needs, and how much of it each device could do."""

from typing import Literal

import torch
from torch.utils.flop_counter import FlopCounterMode

from model.config import ModelConfig
from model.encoders import DualEncoder

Arithmetic = Literal["float16", "bfloat16", "tf32", "float32"]

PEAKS: dict[str, dict[Arithmetic, float]] = {
    "B200": {"bfloat16": 2250, "tf32": 1125, "float32": 75},
    "H200 NVL": {"bfloat16": 835, "tf32": 418, "float32": 60},
    "GH200": {"bfloat16": 989, "tf32": 494, "float32": 67},
    "H200": {"bfloat16": 989, "tf32": 494, "float32": 67},
    "H100 NVL": {"bfloat16": 835, "tf32": 418, "float32": 60},
    "H100 PCIe": {"bfloat16": 756, "tf32": 378, "float32": 51},
    "H100": {"bfloat16": 989, "tf32": 494, "float32": 67},
    "A100": {"bfloat16": 312, "tf32": 156, "float32": 19.5},
    "A40": {"bfloat16": 150, "tf32": 75, "float32": 37.4},
    "A30": {"bfloat16": 165, "tf32": 82, "float32": 10.3},
    "A10": {"bfloat16": 125, "tf32": 62.5, "float32": 31.2},
    "L40S": {"bfloat16": 362, "tf32": 183, "float32": 91.6},
    "L4": {"bfloat16": 121, "tf32": 60, "float32": 30.3},
    "V100": {"float16": 125, "float32": 15.7},
}
"""Dense peaks in TFLOP/s from the makers' data sheets, by a part of the device's name; the first match counts.

float16 stands where it is not as fast as bfloat16.
"""


def peak_tflops(device_name: str, arithmetic: Arithmetic) -> float | None:
    """The device's peak in TFLOP/s, None where it is not known, as of a part of a GPU."""
    words = f" {device_name.replace('-', ' ')} "
    if " MIG " in words:
        return None
    peaks = next((peaks for name, peaks in PEAKS.items() if f" {name} " in words), {})
    return peaks.get(arithmetic, peaks.get("bfloat16") if arithmetic == "float16" else None)


def arithmetic_of(precision: str) -> Arithmetic:
    """What matrices are multiplied in: float32 is TF32 where torch has been allowed to."""
    if precision == "float16":
        return "float16"
    if precision == "bfloat16":
        return "bfloat16"
    return "float32" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def step_flops(
    config: ModelConfig,
    images: torch.Tensor | None,
    regions: torch.Tensor | None,
    region_mask: torch.Tensor | None,
    text: torch.Tensor,
) -> float:
    """Useful floating-point operations of one step on a batch as `Framework` takes it; only its shapes count.

    The encoders forward and backward, as model FLOPs utilisation is defined (PaLM, arXiv 2204.02311, appendix B):
    matrix products, convolutions and attention, two operations a multiplication with addition; a frozen layer
    has no backward of its own. Not counted: what is done again in the backward pass (gradient checkpointing), the
    momentum encoders' forward pass, the losses and the optimiser. So a method with a queue shows a lower
    utilisation than CLIP on the same towers on the same device. Nothing is computed and no memory is taken: the
    encoders are built without storage. Raises torch's `RuntimeError` for towers that look at values.
    """
    whole = {"gradient_checkpointing": False}
    image = config.image.model_copy(update=whole)
    transformer = config.text.transformer.model_copy(update=whole)
    captions = config.text.model_copy(update=whole | {"transformer": transformer})
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        encoders = DualEncoder(config.model_copy(update={"image": image, "text": captions}), pretrained=False)
        # what came from files
        encoders.to("meta").train()
        given = (
            None if part is None else torch.empty_like(part, device="meta")
            for part in (images, regions, region_mask)
        )
        with FlopCounterMode(display=False) as counter:
            total = encoders.encode_image(*given).sum()
            total = total + encoders.encode_text(torch.empty_like(text, device="meta")).sum()
            if total.requires_grad:
                torch.autograd.backward(total)
    return float(counter.get_total_flops())
