"""Weights for the towers of an open_clip configuration: random, of a tag, of a file or of a checkpoint of ours."""

import difflib
import logging
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zipfile import BadZipFile

import open_clip
import torch
from open_clip.convert import convert_state_dict
from open_clip.model import resize_pos_embed, resize_text_pos_embed
from open_clip.transformer import VisionTransformer
from torch import nn

import model.architectures  # noqa: F401  (makes our own known)
from model.errors import ModelError
from model.towers.weights import (
    UNREADABLE,
    Weights,
    find_prefix,
    load_matching,
    read_weights,
    require_finite,
    what_is_wrong,
)

_FETCHING = re.compile(r"for tag '[^']*': |Last error: ")
"""What open_clip writes before the reason why a tag's weights could not be fetched."""
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
    with _quiet():
        if tag:
            return _with_weights(architecture, tag, settings)
        return open_clip.create_model(architecture, device=torch.get_default_device(), **settings)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the lines for which there is one of ours, and those of the hub on each try to connect."""
    root, hub = logging.getLogger(), logging.getLogger("huggingface_hub")
    level = hub.level
    root.addFilter(_is_news)
    hub.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.removeFilter(_is_news)
        hub.setLevel(level)


def _is_news(record: logging.LogRecord) -> bool:
    # an error is raised, too; random weights are what was asked for where `pretrained` is not given
    return record.levelno < logging.ERROR and "No pretrained weights loaded" not in record.getMessage()


def _with_weights(architecture: str, pretrained: str, settings: dict[str, Any]) -> Any:
    source = f"model.pretrained {pretrained!r}"
    if not open_clip.get_pretrained_cfg(architecture, pretrained) and not Path(pretrained).expanduser().exists():
        raise ModelError(f"{source}: no such file, nor a tag of open_clip for {_tags(architecture, pretrained)}")
    try:
        clip = open_clip.create_model(architecture, pretrained, **settings)
    except (*UNREADABLE, BadZipFile) as error:
        if not str(error).startswith("Failed to download"):
            raise ModelError(f"{source}: {what_is_wrong(error)}") from None
        reason = next(iter(_FETCHING.split(str(error))[-1].strip().splitlines()), "").rstrip(".")
        raise ModelError(f"{source} for {architecture}: could not be fetched: {reason}; give a file") from None
    for name, weight in clip.named_parameters():
        require_finite(source, name, weight)
    return clip


def _tags(architecture: str, wrong: str) -> str:
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if near := difflib.get_close_matches(wrong, tags, 3, 0.4):
        return f"{architecture}; nearest: {', '.join(near)}"
    return f"{architecture}; it has {', '.join(tags) or 'none'}"


def load_clip(clip: Any, path: Path) -> tuple[list[str], dict[str, torch.Tensor]]:
    """Fill an open_clip model's towers from a file or folder.

    Returns a line for whatever was not there, one that counts what was taken and names what was not, and `mean`
    and `std` of the pixels where the weights came with them, as a checkpoint of ours does. Raises `ModelError`.
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
    return [*notes, weights.report()], statistics


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
