"""Captions -> the token ids that a configuration's text side takes."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from model.config import ModelConfig
from model.transformer_tokenizer import Augment, TransformerTokenizer, read_transformer_tokenizer


class CaptionTokenizer:
    """One or two tokenizers; the ids of the second follow those of the first. Travels to other processes."""

    def __init__(
        self, clip: Callable[[list[str]], torch.Tensor] | None, transformer: TransformerTokenizer | None
    ) -> None:
        self.clip, self.transformer = clip, transformer

    def __call__(self, captions: list[str], keys: npt.NDArray[np.uint64] | None = None) -> torch.Tensor:
        """(C, T) int64 for C captions; with the (C,) keys of their visits the transformer's may be augmented."""
        parts = [self.clip(captions)] if self.clip else []
        if self.transformer:
            parts.append(self.transformer(captions, keys))
        return torch.cat(parts, dim=1)


def build_caption_tokenizer(config: ModelConfig, augment: Augment | None = None) -> CaptionTokenizer:
    """The tokenizer for `model.towers.build.build_towers(config).text`; raises `ModelError`.

    `augment` changes the words that the transformer reads, when keys are given; CLIP's text is left alone.
    """
    clip = None
    if config.text.towers != "transformer":
        from model.tokenizer import build_tokenizer

        clip = build_tokenizer(config.architecture)
    if config.text.towers == "clip":
        return CaptionTokenizer(clip, None)
    words = config.text.transformer
    return CaptionTokenizer(clip, read_transformer_tokenizer(words.name, words.max_length, augment))
