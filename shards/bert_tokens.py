"""Captions -> BERT's word pieces, masked at random in training."""

from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from shards.augment import mask_words
from shards.errors import DataError

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class BertTokens:
    """Tokenizes captions as BERT takes them: `[CLS] pieces [SEP]`, then `[PAD]` up to `max_length`.

    A caption that is too long is cut, and still ends with `[SEP]`. With keys, about `mask_share` of the words
    are masked, replaced or deleted (`shards.augment.mask_words`), the words being what BERT's own rules part
    at spaces and punctuation. Travels to other processes.
    """

    def __init__(
        self, vocab: str | Path, max_length: int = 64, mask_share: float = 0.2, lowercase: bool = True
    ) -> None:
        """`vocab` is a `vocab.txt`, one token a line, as BERT models come with.

        Raises `DataError` when it cannot be read or lacks one of `SPECIAL`, or when a setting is out of range.
        """
        if max_length < 3:
            raise DataError(
                f"max_length is {max_length}; a caption needs at least 3 tokens, two of them [CLS] and [SEP]"
            )
        if not 0 <= mask_share <= 1:
            raise DataError(f"mask_share is {mask_share}; give a number from 0 to 1")
        ids = _read_vocab(Path(vocab))
        self.max_length, self.mask_share = max_length, mask_share
        self.pad, _, self.cls, self.sep, self.mask = (ids[token] for token in SPECIAL)
        self.random_tokens = np.array([number for token, number in ids.items() if not _is_special(token)], np.int64)
        # nothing is registered as special: a caption that says "[SEP]" is plain text
        self.tokenizer = Tokenizer(WordPiece(ids, unk_token="[UNK]"))
        self.tokenizer.normalizer = BertNormalizer(lowercase=lowercase)
        self.tokenizer.pre_tokenizer = BertPreTokenizer()

    def __call__(self, captions: list[str], keys: npt.NDArray[np.uint64] | None = None) -> torch.Tensor:
        """(C, max_length) int64 for C captions; `keys` (C,) draw the masking, None masks nothing."""
        tokens = np.full((len(captions), self.max_length), self.pad, np.int64)
        for row, caption in enumerate(captions):
            words = self._words(caption)
            if keys is not None:
                words = mask_words(words, keys[row], self.mask, self.random_tokens, self.mask_share)
            pieces = list(chain.from_iterable(words))[: self.max_length - 2]
            tokens[row, : len(pieces) + 2] = [self.cls, *pieces, self.sep]
        return torch.from_numpy(tokens)

    def _words(self, caption: str) -> list[list[int]]:
        encoding = self.tokenizer.encode(caption)
        words: list[list[int]] = []
        last = None
        for piece, word in zip(encoding.ids, encoding.word_ids, strict=True):
            if word != last:
                words.append([])
            words[-1].append(piece)
            last = word
        return words


def _is_special(token: str) -> bool:
    return token.startswith("[") and token.endswith("]") and len(token) > 2  # "[unused7]" too


def _read_vocab(path: Path) -> dict[str, int]:
    try:
        # not splitlines: other separators than the newline are tokens
        lines = path.read_bytes().decode().replace("\r\n", "\n").split("\n")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; give the vocab.txt of a BERT model") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a vocabulary ({error}); give the vocab.txt of a BERT model") from None
    ids = {line: number for number, line in enumerate(lines) if line}
    if missing := [token for token in SPECIAL if token not in ids]:
        raise DataError(
            f"{path}: has no {', '.join(missing)}; give the vocab.txt of a BERT model, one token a line"
        )
    if all(_is_special(token) for token in ids):
        raise DataError(f"{path}: holds no words; give the vocab.txt of a BERT model, one token a line")
    return ids
