"""Weights for the towers of an open_clip configuration: random, of a tag, of a file or of a checkpoint of ours."""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from types import SimpleNamespace
from typing import Any

import open_clip
import torch
from open_clip.convert import convert_state_dict
from open_clip.model import resize_pos_embed, resize_text_pos_embed
from open_clip.transformer import VisionTransformer
from safetensors import SafetensorError
from torch import nn

import model.architectures  # noqa: F401  (makes our own known)
from model.errors import ModelError
from model.towers.weights import Weights, find_prefix, load_matching, read_weights

_NO_WEIGHTS = (AssertionError, AttributeError, EOFError, KeyError, TypeError, UnpicklingError, SafetensorError)
"""What open_clip and torch raise, beside RuntimeError and OSError, on a file that holds no such weights."""
_IMAGE_POSITIONS = "visual.positional_embedding"


def weights_file(pretrained: str | None) -> Path | None:
    """The file or folder that `pretrained` names, None for a tag, and for what only open_clip can read."""
    path = Path(pretrained or "").expanduser()
    return path if pretrained and path.exists() and path.suffix not in {".npy", ".npz"} else None


def new_clip(architecture: str, tag: str | None = None, image_size: int | None = None) -> Any:
    """An open_clip model with random weights, or with those of a tag. Raises `ModelError` when it has none.

    With `image_size`, it takes pictures of that side; position embeddings of a tag are interpolated.
    """
    settings = {"force_custom_text": True, "force_image_size": image_size}
    return _with_weights(architecture, tag, settings) if tag else _with_random_weights(architecture, settings)


def _is_news(record: logging.LogRecord) -> bool:
    # random weights are what was asked for where `pretrained` is not given
    return "No pretrained weights loaded" not in record.getMessage()


def _with_random_weights(architecture: str, settings: dict[str, Any]) -> Any:
    logger = logging.getLogger()
    logger.addFilter(_is_news)
    try:
        return open_clip.create_model(architecture, device=torch.get_default_device(), **settings)
    finally:
        logger.removeFilter(_is_news)


def _with_weights(architecture: str, pretrained: str, settings: dict[str, Any]) -> Any:
    try:
        return open_clip.create_model(architecture, pretrained, **settings)
    except (RuntimeError, OSError) as error:
        raise ModelError(f"model.pretrained {pretrained!r} for {architecture}: {error}") from None
    except _NO_WEIGHTS as error:
        reason = f"{type(error).__name__} {str(error).partition('. ')[0]}".strip()
        raise ModelError(
            f"model.pretrained {pretrained!r} for {architecture}: no weights of it ({reason})"
        ) from None


def load_clip(clip: Any, path: Path) -> tuple[list[str], dict[str, torch.Tensor]]:
    """Fill an open_clip model's towers from a file or folder.

    Returns a line for whatever had no counterpart, and `mean` and `std` of the pixels where the weights came
    with them, as a checkpoint of ours does. Raises `ModelError`.
    """
    weights = read_weights(path, "model.pretrained")
    weights.tensors = convert_state_dict(clip, weights.tensors)
    notes = [
        *_resize(clip.visual, "visual", fit_positions, weights),
        *_resize(clip.text, "text", _fit_text_positions, weights),
    ]
    prefix = find_prefix(clip.visual, weights.tensors)
    statistics = {}
    if prefix is not None and prefix.endswith("visual."):
        outer = prefix.removesuffix("visual.")
        statistics = {
            name: weights.take(outer + name) for name in ("mean", "std") if outer + name in weights.tensors
        }
    missing = {part: load_matching(getattr(clip, part), weights, f"{part}.") for part in ("visual", "text")}
    if all(lines is None for lines in missing.values()):
        raise ModelError(f"{weights.source}: weights of another model: no name in it is known here")
    for part, lines in missing.items():
        notes += [f"{part}.*: not in {weights.source}, left random"] if lines is None else lines
    return notes + weights.unused(), statistics


def fit_positions(visual: nn.Module, theirs: torch.Tensor) -> torch.Tensor:
    """A ViT's position embeddings (1 + n, width), interpolated to its own number of patches, as open_clip does.

    What cannot be, such as no square of patches, is returned as it is, to be refused for its shape.
    """
    state = {_IMAGE_POSITIONS: theirs}
    if isinstance(visual, VisionTransformer) and math.isqrt(len(theirs) - 1) ** 2 == len(theirs) - 1:
        resize_pos_embed(state, SimpleNamespace(visual=visual))
    return state[_IMAGE_POSITIONS]


def _fit_text_positions(text: nn.Module, theirs: torch.Tensor) -> torch.Tensor:
    state = {"positional_embedding": theirs}
    resize_text_pos_embed(state, text)
    return state["positional_embedding"]


def _resize(
    module: nn.Module, part: str, fit: Callable[[nn.Module, torch.Tensor], torch.Tensor], weights: Weights
) -> list[str]:
    """Interpolate position embeddings of another image size or text length."""
    key = "positional_embedding"
    own, found = getattr(module, key, None), f"{find_prefix(module, weights.tensors)}{key}"
    theirs = weights.tensors.get(found)
    if own is None or theirs is None or len(theirs) == len(own) or theirs.shape[1:] != own.shape[1:]:
        return []
    weights.tensors[found] = fitted = fit(module, theirs)
    if len(fitted) != len(own):
        return []
    return [f"{part}.{key}: interpolated from {len(theirs)} to {len(own)} places"]
