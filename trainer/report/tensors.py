"""Single tensors of a checkpoint, without reading the others."""

from collections.abc import Sequence

import torch
from safetensors import SafetensorError, safe_open

from trainer.checkpoint import WEIGHTS, Checkpoint
from trainer.errors import RunError


def read_tensors(checkpoint: Checkpoint, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """The named weights or buffers. Raises `RunError` where one is not there."""
    path = checkpoint.path / WEIGHTS
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path}: cannot be read ({error})") from None


def count_weights(checkpoint: Checkpoint, prefix: str) -> int:
    """The numbers in all tensors whose names start so. Raises `RunError`."""
    path = checkpoint.path / WEIGHTS
    try:
        with safe_open(path, "pt") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path}: cannot be read ({error})") from None
    return sum(torch.Size(shape).numel() for shape in shapes)
