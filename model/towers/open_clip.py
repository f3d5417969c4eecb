"""Image and text towers from open_clip configurations, the named ones and our own small ones."""

import difflib
import re
from dataclasses import dataclass
from itertools import chain
from typing import Any, cast

import open_clip
import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import TextTransformer, VisionTransformer
from torch import nn
from torch.func import functional_call

import model.architectures  # noqa: F401  (makes our own known)
from model.errors import ModelError
from model.features import Features
from model.towers.open_clip_weights import load_clip, new_clip, weights_file
from model.towers.tower import Backbone

_BLOCK = re.compile(r"\.resblocks\.(\d+)\.")
_EMBEDDINGS = re.compile(r"^(visual|text)\.(conv1|ln_pre|class_embedding|positional_embedding|token_embedding)\b")


@dataclass(frozen=True)
class TowerWidths:
    """Feature widths of a pair of towers, and what they take in."""

    pooled: int
    image_tokens: int
    text_tokens: int
    image_size: int
    context_length: int


class ImageTower(Backbone):
    """A ViT or a timm network; its local tokens are its patches."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        visual: nn.Module,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        pooled_width: int,
        token_width: int,
    ) -> None:
        super().__init__()
        self.visual, self.pooled_width, self.token_width = visual, pooled_width, token_width
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(std).view(1, -1, 1, 1))
        if isinstance(visual, VisionTransformer):
            visual.output_tokens = True

    def forward(
        self,
        images: torch.Tensor | None,
        _regions: torch.Tensor | None = None,
        _region_mask: torch.Tensor | None = None,
    ) -> Features:
        """(B, side, side, 3) uint8 -> features. Raises `ModelError` for a batch without images."""
        if images is None:
            raise ModelError("the data set holds no images, which this model reads; give one that has them")
        pixels = (images.permute(0, 3, 1, 2).to(torch.float32) - self.mean) / self.std
        with self.gradient():
            if isinstance(self.visual, VisionTransformer):
                pooled, tokens = self.visual(pixels)
                return Features(pooled, tokens, None)
            trunk, head = cast(Any, self.visual.trunk), cast(Any, self.visual.head)
            grid = trunk.forward_features(pixels)
            pooled = head(trunk.forward_head(grid))
            return Features(pooled, _patches(trunk, grid), None)

    def depths(self) -> tuple[dict[str, int], int]:
        if isinstance(self.visual, VisionTransformer):
            return _depths(self)
        from timm.models._manipulate import group_with_matcher

        trunk = cast(Any, self.visual.trunk)
        named = chain(trunk.named_parameters(), [("", None)])  # the nameless falls in with what is in no block
        found = group_with_matcher(named, trunk.group_matcher(), reverse=True)
        names = {name: name.removeprefix("visual.trunk.") for name, _ in self.named_parameters()}
        return {name: found.get(inner, found[""]) for name, inner in names.items()}, found[""] - 1

    def checkpoint_blocks(self) -> None:
        if isinstance(self.visual, VisionTransformer):
            self.visual.set_grad_checkpointing()
            return
        try:
            cast(Any, self.visual.trunk).set_grad_checkpointing()
        except (AssertionError, AttributeError):
            raise ModelError(
                "model.image.gradient_checkpointing: this image tower cannot do it; set it to false"
            ) from None


def _depths(tower: Backbone) -> tuple[dict[str, int], int]:
    """As `Backbone.depths`, of open_clip's own transformers."""
    found = {name: _BLOCK.search(name) for name, _ in tower.named_parameters()}
    blocks = max(int(match[1]) + 1 for match in found.values() if match)
    return {
        name: int(match[1]) + 1 if match else 0 if _EMBEDDINGS.match(name) else blocks + 1
        for name, match in found.items()
    }, blocks


def _patches(trunk: Any, grid: torch.Tensor) -> torch.Tensor:
    """A timm network's features -> (B, n, width), without class and register tokens."""
    if grid.ndim == 3:
        return grid[:, getattr(trunk, "num_prefix_tokens", 0) :]
    channels_last = getattr(trunk, "output_fmt", "NCHW") == "NHWC"
    return grid.flatten(1, 2) if channels_last else grid.flatten(2).transpose(1, 2)


class TextTower(Backbone):
    """The CLIP text transformer; its local tokens are the words and the end-of-text token."""

    def __init__(self, text: TextTransformer, pooled_width: int, token_width: int) -> None:
        super().__init__()
        self.text, self.pooled_width, self.token_width = text, pooled_width, token_width
        self.context_length = int(text.context_length)
        text.output_tokens = True

    def forward(self, tokens: torch.Tensor) -> Features:
        """(C, T) int64 token ids as the tokenizer gives them, T at most the context length -> features."""
        mask, length = {}, tokens.shape[1]
        if self.text.attn_mask is not None:  # open_clip itself takes no text that is shorter than its mask
            mask = {"attn_mask": self.text.attn_mask[:length, :length]}
        with self.gradient():
            pooled, words = functional_call(self.text, mask, (tokens,), tie_weights=False)
        # the end-of-text token has the largest id; the start token sees only itself, so it says nothing
        end = tokens.argmax(dim=1, keepdim=True)
        place = torch.arange(tokens.shape[1], device=tokens.device)
        return Features(pooled, words[:, 1:], (place <= end)[:, 1:])

    def depths(self) -> tuple[dict[str, int], int]:
        return _depths(self)

    def checkpoint_blocks(self) -> None:
        self.text.set_grad_checkpointing()


def _known(architecture: str) -> None:
    if architecture not in open_clip.list_models():
        names = {name.lower(): name for name in open_clip.list_models()}
        near = [names[match] for match in difflib.get_close_matches(architecture.lower(), names, 3, 0.4)]
        raise ModelError(
            f"model.architecture {architecture!r}: no such open_clip configuration"
            + (f"; nearest: {', '.join(near)}" if near else "")
        )


def tower_widths(architecture: str, image_size: int | None = None) -> TowerWidths:
    """Read an architecture's widths from its configuration, for pictures of another side if given.

    Raises `ModelError` when there is none, and for a side that its patches do not fill.
    """
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
            "give one of a square ViT or timm image tower with a CLIP text tower and CLIP's tokenizer"
        )
    patch = 1 if vision.get("timm_model_name") else int(vision.get("patch_size", 16))
    if image_size is not None and image_size % patch:
        raise ModelError(f"model.image.size: {image_size} is not a multiple of {patch}, the side of a patch")
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
        image_size or int(size),
        int(text.get("context_length", 77)),
    )


def clip_towers(
    architecture: str, pretrained: str | None = None, load: bool = True, image_size: int | None = None
) -> tuple[ImageTower, TextTower, list[str]]:
    """Both towers of an open_clip configuration, with random weights or with `pretrained` ones.

    `pretrained` is a weights tag that open_clip knows, a file, or a checkpoint of ours; of a file or a
    checkpoint the third result says, a line each, what had no counterpart. With `load=False` the weights stay
    random, for others to be loaded afterwards, while the pixels are still normalised as the tag's were. With
    `image_size`, pictures have that side, and loaded position embeddings are interpolated to it. Raises
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
    widths = tower_widths(architecture, image_size)  # refuses first what would ask the hub for a text tower
    file = weights_file(pretrained) if load else None
    clip = new_clip(architecture, pretrained if load and not file else None, image_size)
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
    notes, statistics = load_clip(clip, file) if file else ([], {})
    settings = open_clip.get_model_preprocess_cfg(clip) | tag
    image_tower = ImageTower(visual, settings["mean"], settings["std"], widths.pooled, widths.image_tokens)
    image_tower.load_state_dict(statistics, strict=False)
    return image_tower, TextTower(text, widths.pooled, widths.text_tokens), notes
