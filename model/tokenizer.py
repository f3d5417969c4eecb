"""Captions -> token ids, as the architecture's text tower takes them."""

from collections.abc import Callable

import open_clip
import torch

import model.architectures  # noqa: F401  (makes our own known)


def build_tokenizer(architecture: str) -> Callable[[list[str]], torch.Tensor]:
    """The tokenizer of an architecture: C captions -> (C, context_length) int64.

    A text longer than the context is cut, and still ends with the end-of-text token.
    """
    tokenizer: Callable[[list[str]], torch.Tensor] = open_clip.get_tokenizer(architecture)
    return tokenizer
