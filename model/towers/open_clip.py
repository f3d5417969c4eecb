"""Image and text towers from open_clip configurations, the named ones and our own small ones."""

import difflib
import logging
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import Any, cast

import open_clip
import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import TextTransformer, VisionTransformer
from safetensors import SafetensorError
from torch import nn

import model.architectures  # noqa: F401  (makes our own known)
from model.errors import ModelError
from model.features import Features

_NO_WEIGHTS = (AssertionError, AttributeError, EOFError, KeyError, TypeError, UnpicklingError, SafetensorError)
"""What open_clip and torch raise, beside RuntimeError and OSError, on a file that holds no such weights."""


@dataclass(frozen=True)
class TowerWidths:
    """Feature widths of a pair of towers, and what they take in."""

    pooled: int
    image_tokens: int
    text_tokens: int
    image_size: int
    context_length: int


class ImageTower(nn.Module):
    """A ViT or a timm network; its local tokens are its patches."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, visual: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.visual = visual
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(std).view(1, -1, 1, 1))
        if isinstance(visual, VisionTransformer):
            visual.output_tokens = True

    def forward(self, images: torch.Tensor) -> Features:
        """(B, side, side, 3) uint8 -> features."""
        pixels = (images.permute(0, 3, 1, 2).to(torch.float32) - self.mean) / self.std
        if isinstance(self.visual, VisionTransformer):
            pooled, tokens = self.visual(pixels)
            return Features(pooled, tokens, None)
        trunk, head = cast(Any, self.visual.trunk), cast(Any, self.visual.head)
        grid = trunk.forward_features(pixels)
        pooled = head(trunk.forward_head(grid))
        return Features(pooled, _patches(trunk, grid), None)


def _patches(trunk: Any, grid: torch.Tensor) -> torch.Tensor:
    """A timm network's features -> (B, n, width), without class and register tokens."""
    if grid.ndim == 3:
        return grid[:, getattr(trunk, "num_prefix_tokens", 0) :]
    channels_last = getattr(trunk, "output_fmt", "NCHW") == "NHWC"
    return grid.flatten(1, 2) if channels_last else grid.flatten(2).transpose(1, 2)


class TextTower(nn.Module):
    """The CLIP text transformer; its local tokens are the words and the end-of-text token."""

    def __init__(self, text: TextTransformer) -> None:
        super().__init__()
        self.text = text
        text.output_tokens = True

    def forward(self, tokens: torch.Tensor) -> Features:
        """(C, T) int64 token ids as the tokenizer gives them -> features."""
        pooled, words = self.text(tokens)
        # the end-of-text token has the largest id; the start token sees only itself, so it says nothing
        end = tokens.argmax(dim=1, keepdim=True)
        place = torch.arange(tokens.shape[1], device=tokens.device)
        return Features(pooled, words[:, 1:], (place <= end)[:, 1:])


def _known(architecture: str) -> None:
    if architecture not in open_clip.list_models():
        near = difflib.get_close_matches(architecture, open_clip.list_models(), 3, 0.4)
        raise ModelError(
            f"model.architecture {architecture!r}: no such open_clip configuration"
            + (f"; nearest: {', '.join(near)}" if near else "")
        )


def tower_widths(architecture: str) -> TowerWidths:
    """Read an architecture's widths from its configuration. Raises `ModelError` when there is none."""
    _known(architecture)
    config = open_clip.get_model_config(architecture)
    vision, text = config["vision_cfg"], config["text_cfg"]
    size = vision.get("image_size", 224)
    if (
        isinstance(size, (tuple, list))
        or isinstance(vision.get("layers"), (list, tuple))
        or "multimodal_cfg" in config
        or text.get("hf_model_name")
        or text.get("hf_tokenizer_name")  # the text tower knows a sentence's end by CLIP's own token ids
    ):
        raise ModelError(
            f"model.architecture {architecture!r}: "
            "a square ViT or timm image tower with a CLIP text tower and CLIP's tokenizer is needed"
        )
    if vision.get("timm_model_name"):
        import timm

        with torch.device("meta"):
            image_tokens = int(cast(Any, timm.create_model(vision["timm_model_name"])).num_features)
    else:
        image_tokens = int(vision.get("width", 768))
    return TowerWidths(
        int(config["embed_dim"]),
        image_tokens,
        int(text.get("width", 512)),
        int(size),
        int(text.get("context_length", 77)),
    )


def _is_news(record: logging.LogRecord) -> bool:
    # random weights are what was asked for where `pretrained` is not given
    return "No pretrained weights loaded" not in record.getMessage()


def _with_random_weights(architecture: str) -> Any:
    logger = logging.getLogger()
    logger.addFilter(_is_news)
    try:
        return open_clip.create_model(architecture, force_custom_text=True)
    finally:
        logger.removeFilter(_is_news)


def _with_weights(architecture: str, pretrained: str) -> Any:
    try:
        return open_clip.create_model(architecture, pretrained, force_custom_text=True)
    except (RuntimeError, OSError) as error:
        raise ModelError(f"model.pretrained {pretrained!r} for {architecture}: {error}") from None
    except _NO_WEIGHTS as error:
        reason = f"{type(error).__name__} {str(error).partition('. ')[0]}".strip()
        raise ModelError(
            f"model.pretrained {pretrained!r} for {architecture}: no weights of it ({reason})"
        ) from None


def build_towers(
    architecture: str, pretrained: str | None = None, load: bool = True
) -> tuple[ImageTower, TextTower]:
    """Both towers of an open_clip configuration, with random weights or with `pretrained` ones.

    `pretrained` is a weights tag that open_clip knows or a file. With `load=False` the weights stay random,
    for others to be loaded afterwards, while the pixels are still normalised as the tag's were. Raises
    `ModelError` for an unknown architecture, for towers of a kind that is not supported, and for weights
    that cannot be loaded.
    """
    _known(architecture)
    tag = open_clip.get_pretrained_cfg(architecture, pretrained or "")
    if tag.get("quick_gelu") and not open_clip.get_model_config(architecture).get("quick_gelu"):
        raise ModelError(
            f"model.pretrained {pretrained!r} was trained with another activation than {architecture} has; "
            f"set model.architecture to {architecture}-quickgelu"
        )
    clip = _with_weights(architecture, pretrained) if pretrained and load else _with_random_weights(architecture)
    visual, text = clip.visual, clip.text
    if not isinstance(visual, VisionTransformer | TimmModel) or not isinstance(text, TextTransformer):
        raise ModelError(
            f"model.architecture {architecture!r}: {type(visual).__name__} and {type(text).__name__} are not "
            "supported; choose one with a ViT or timm image tower and a CLIP text transformer"
        )
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in visual.modules()):
        raise ModelError(
            f"model.architecture {architecture!r}: its image tower has batch norm, whose result would depend on "
            "the number of processes; choose a ViT, a ConvNeXt or another without"
        )
    settings = open_clip.get_model_preprocess_cfg(clip) | tag
    return ImageTower(visual, settings["mean"], settings["std"]), TextTower(text)
