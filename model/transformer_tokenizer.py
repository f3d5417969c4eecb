"""Captions -> token ids as a text encoder of the `transformers` library takes them; needs `tokenizers` alone.

Apart from `read_transformer_tokenizer`, which makes one from a model's folder: loader workers need not import
the library.
"""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from model.errors import ModelError

Words = Sequence[Sequence[int]]
"""A caption's words, each as the ids of its pieces."""
Augment = Callable[[Words, np.uint64, int, npt.NDArray[np.int64]], Words]
"""Words, the random key of this visit, the id of the mask token, ids to draw replacements from -> words."""


class TransformerTokenizer:
    """`[CLS] pieces [SEP]`, in the model's own terms, then padding up to `max_length`.

    A caption that is too long is cut, and still ends with `[SEP]`; the name of a special token in a caption
    is plain text. Given keys, `augment` may change the words. Travels to other processes.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        begin: int,
        end: int,
        pad: int,
        mask: int,
        random_tokens: npt.NDArray[np.int64],
        max_length: int,
        augment: Augment | None = None,
    ) -> None:
        self.tokenizer, self.max_length, self.augment = tokenizer, max_length, augment
        self.begin, self.end, self.pad, self.mask, self.random_tokens = begin, end, pad, mask, random_tokens
        self._plain()

    def _plain(self) -> None:
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.tokenizer.encode_special_tokens = True

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._plain()  # which its pickle does not hold

    def __call__(self, captions: list[str], keys: npt.NDArray[np.uint64] | None = None) -> torch.Tensor:
        """(C, max_length) int64 for C captions; without keys (C,) nothing is drawn."""
        tokens = np.full((len(captions), self.max_length), self.pad, np.int64)
        for row, caption in enumerate(captions):
            encoding = self.tokenizer.encode(caption, add_special_tokens=False)
            pieces = encoding.ids
            if keys is not None and self.augment is not None:
                words = self.augment(_words(encoding), keys[row], self.mask, self.random_tokens)
                pieces = list(chain.from_iterable(words))
            pieces = pieces[: self.max_length - 2]
            tokens[row, : len(pieces) + 2] = [self.begin, *pieces, self.end]
        return torch.from_numpy(tokens)


def _words(encoding: Any) -> list[list[int]]:
    words: list[list[int]] = []
    last = None
    for piece, word in zip(encoding.ids, encoding.word_ids, strict=True):
        if word != last:
            words.append([])
        words[-1].append(piece)
        last = word
    return words


def read_transformer_tokenizer(name: str, max_length: int, augment: Augment | None = None) -> TransformerTokenizer:
    """The tokenizer of a model's folder or hub name. Raises `ModelError` when it is not as BERT's are."""
    from model.transformers_hub import WHERE, read_config, read_tokenizer

    config, theirs = read_config(name), read_tokenizer(name)
    begin, end, pad, mask = theirs.cls_token_id, theirs.sep_token_id, theirs.pad_token_id, theirs.mask_token_id
    fast: Any = getattr(theirs, "backend_tokenizer", None)
    known = isinstance(fast, Tokenizer) and None not in {begin, end, pad, mask}
    if not known or (ids := fast.encode("a").ids)[0] != begin or ids[-1] != end:
        raise ModelError(
            f"{WHERE}.name {name!r}: its tokenizer does not begin, end, pad and mask a text as BERT's does"
        )
    vocabulary = fast.get_vocab()
    # where there is no tokenizer in a folder, the library makes one that knows no words
    if len(vocabulary) <= config.vocab_size // 2 or max(vocabulary.values()) >= config.vocab_size:
        raise ModelError(
            f"{WHERE}.name {name!r}: its tokenizer is missing or that of another model "
            f"({len(vocabulary)} tokens, the model has {config.vocab_size})"
        )
    if pad != config.pad_token_id:
        raise ModelError(
            f"{WHERE}.name {name!r}: its tokenizer pads with {pad}, but pad_token_id in its config.json is "
            f"{config.pad_token_id}; give the tokenizer with which it was trained"
        )
    apart = set(theirs.all_special_ids)
    words = sorted(number for word, number in vocabulary.items() if number not in apart and not _is_unused(word))
    return TransformerTokenizer(fast, begin, end, pad, mask, np.array(words, np.int64), max_length, augment)


def _is_unused(token: str) -> bool:
    return token.startswith("[unused") and token.endswith("]")
