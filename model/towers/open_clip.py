"""Image and text towers from open_clip configurations, the named ones and our own small ones."""

import difflib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import open_clip
import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import TextTransformer, VisionTransformer
from torch import nn

from model.errors import ModelError
from model.features import Features

open_clip.add_model_config(Path(__file__).parent.parent / "architectures")


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
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(1, -1, 1, 1), persistent=False)
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
        tokens = grid.flatten(2).transpose(1, 2) if grid.ndim == 4 else grid
        return Features(pooled, tokens, None)


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
        or text.get("hf_model_name")
        or isinstance(vision.get("layers"), (list, tuple))
    ):
        raise ModelError(
            f"model.architecture {architecture!r}: "
            "a square ViT or timm image tower with a CLIP text tower is needed"
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


def build_towers(architecture: str, pretrained: str | None = None) -> tuple[ImageTower, TextTower]:
    """Both towers of an open_clip configuration, with random weights or with `pretrained` ones.

    `pretrained` is a weights tag that open_clip knows or a file. Raises `ModelError` for an unknown
    architecture, for towers of a kind that is not supported, and for weights that cannot be loaded.
    """
    _known(architecture)
    logger = logging.getLogger()
    logger.addFilter(_is_news)
    try:
        clip = open_clip.create_model(architecture, pretrained=pretrained, force_custom_text=True)
    except (RuntimeError, OSError) as error:
        raise ModelError(f"model.pretrained {pretrained!r} for {architecture}: {error}") from None
    finally:
        logger.removeFilter(_is_news)
    visual, text = clip.visual, clip.text
    if not isinstance(visual, VisionTransformer | TimmModel) or not isinstance(text, TextTransformer):
        raise ModelError(
            f"model.architecture {architecture!r}: {type(visual).__name__} and {type(text).__name__} are not "
            "supported; choose one with a ViT or timm image tower and a CLIP text transformer"
        )
    settings = open_clip.get_model_preprocess_cfg(clip)
    return ImageTower(visual, settings["mean"], settings["std"]), TextTower(text)
