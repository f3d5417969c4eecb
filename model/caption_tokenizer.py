"""Captions -> the token ids that a configuration's text side takes.

Padding costs as much as words in the towers and heads, so a batch is cut to its longest caption. Nothing depends on
padding, so batches of other captions, and other numbers of processes, give a caption the same features.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from model.config import ModelConfig
from model.transformer_tokenizer import Augment, TransformerTokenizer, read_transformer_tokenizer

MULTIPLE = 8
"""What the length of a batch's captions is a multiple of: few shapes, for compilers and allocators."""


class CaptionTokenizer:
    """One or two tokenizers; the ids of the second follow those of the first. Travels to other processes."""

    def __init__(
        self,
        clip: Callable[[list[str]], torch.Tensor] | None,
        transformer: TransformerTokenizer | None,
        cut: bool = True,
    ) -> None:
        """`cut=False` where padding has a part in the features, and where a fixed length is wanted."""
        self.clip, self.transformer, self.cut = clip, transformer, cut

    def __call__(self, captions: list[str], keys: npt.NDArray[np.uint64] | None = None) -> torch.Tensor:
        """(C, T) int64 for C captions; with the (C,) keys of their visits the transformer's may be augmented.

        T is the longest caption's length up to a multiple of 8, or the context length where that is less. Two
        tokenizers have equal lengths then, or both their context lengths.
        """
        parts, ends = [], []
        if self.clip:
            parts.append(self.clip(captions))
            ends.append(parts[-1].argmax(dim=1))  # the end-of-text token has the largest id
        if self.transformer:
            parts.append(self.transformer(captions, keys))
            ends.append((parts[-1] != self.transformer.pad).sum(dim=1) - 1)
        if self.cut and captions:
            longest = 1 + int(torch.stack(ends).max())
            length = -(-longest // MULTIPLE) * MULTIPLE
            if all(length <= part.shape[1] for part in parts):
                parts = [part[:, :length] for part in parts]
        return torch.cat(parts, dim=1)


def build_caption_tokenizer(
    config: ModelConfig, augment: Augment | None = None, cut: bool = True
) -> CaptionTokenizer:
    """The tokenizer for `model.towers.build.build_towers(config).text`; raises `ModelError`.

    `augment` changes the words that the transformer reads, when keys are given; CLIP's text is left alone. With
    `cut=False` captions are padded to the context length.
    """
    clip = None
    if config.text.towers != "transformer":
        from model.tokenizer import build_tokenizer, ignores_padding

        clip, cut = build_tokenizer(config.architecture), cut and ignores_padding(config.architecture)
    if config.text.towers == "clip":
        return CaptionTokenizer(clip, None, cut)
    from model.transformers_hub import PLAIN_ATTENTION, read_config

    words = config.text.transformer
    transformer = read_transformer_tokenizer(words.name, words.max_length, augment)
    return CaptionTokenizer(clip, transformer, cut and read_config(words.name).model_type in PLAIN_ATTENTION)
