"""The encoders' arithmetic by its name in a recipe."""

import torch

AUTOCAST: dict[str, torch.dtype | None] = {
    "float32": None,  # that of the weights
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
