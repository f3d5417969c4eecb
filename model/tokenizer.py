"""Captions -> token ids, as the architecture's text tower takes them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer, get_clean_fn

import model.architectures  # noqa: F401  (makes our own known)

CACHED_WORDS = 2**17
"""Words whose ids are remembered; the memory then starts afresh, as the web has words without end."""


def build_tokenizer(architecture: str) -> Callable[[list[str]], torch.Tensor]:
    """The tokenizer of an architecture: C captions -> (C, context_length) int64.

    A text longer than the context is cut, and still ends with the end-of-text token.
    """
    tokenizer: Callable[[list[str]], torch.Tensor] = open_clip.get_tokenizer(architecture)
    return CachedTokenizer(tokenizer) if CachedTokenizer.fits(tokenizer) else tokenizer


def ignores_padding(architecture: str) -> bool:
    """Whether what follows a text's end changes nothing for the architecture's text tower: each token sees those
    before it, and the end-of-text token gives the global feature."""
    text = open_clip.get_model_config(architecture)["text_cfg"]
    return (
        not text.get("no_causal_mask") and not text.get("embed_cls") and text.get("pool_type", "argmax") == "argmax"
    )


class CachedTokenizer:
    """The ids of open_clip's `SimpleTokenizer`, exactly, in a fraction of its time.

    Its pattern never matches across white space, so a text's ids are those of its words in a row, and words
    repeat. Its repair of broken Unicode and HTML leaves printable ASCII without an `&` as it is.
    """

    def __init__(self, tokenizer: SimpleTokenizer) -> None:
        self.tokenizer = tokenizer
        self._specials = [tokenizer.decoder[special] for special in tokenizer.all_special_ids]
        self._words: dict[str, list[int]] = {}

    @staticmethod
    def fits(tokenizer: Any) -> bool:
        """Whether the tokenizer is one whose ids this class can give."""
        return (
            type(tokenizer) is SimpleTokenizer
            and tokenizer.clean_fn is get_clean_fn("lower")
            and tokenizer.reduction_fn is None
        )

    def __call__(self, texts: list[str]) -> torch.Tensor:
        start, end = self.tokenizer.sot_token_id, self.tokenizer.eot_token_id
        length = self.tokenizer.context_length
        ids = np.zeros((len(texts), length), np.int64)
        for row, text in zip(ids, texts, strict=True):
            tokens = [start, *self.encode(text)[: length - 2], end]
            row[: len(tokens)] = tokens
        return torch.from_numpy(ids)

    def encode(self, text: str) -> list[int]:
        """All ids of a text, without those of start and end."""
        if text.isascii() and text.isprintable() and "&" not in text:
            clean = text.lower()
        else:
            clean = self.tokenizer.clean_fn(text)
        words, ids = self._words, []
        for word in clean.split():
            known = words.get(word)
            ids += self._learn(word) if known is None else known
        return ids

    def _learn(self, word: str) -> list[int]:
        if len(self._words) >= CACHED_WORDS:
            self._words.clear()
            self.tokenizer.cache = {word: word for word in self._specials}  # it has no bound of its own
        pieces = self.tokenizer.pat.findall(word)
        encoded = ("".join(self.tokenizer.byte_encoder[byte] for byte in piece.encode()) for piece in pieces)
        ids = [self.tokenizer.encoder[part] for piece in encoded for part in self.tokenizer.bpe(piece).split(" ")]
        self._words[word] = ids
        return ids
