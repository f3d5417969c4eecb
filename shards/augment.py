"""Augmentations of AAHR: some image regions are dropped, some words are masked, replaced or deleted.

Pure functions of a key: what is drawn for a sample does not depend on who loads it, nor on what was
loaded before.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from shards.keyed_random import uniforms

_MASKED, _REPLACED = 0.5, 0.1
"""Of the touched words; the others are deleted."""


def drop_regions(num_regions: int, key: np.uint64, probability: float = 0.2) -> npt.NDArray[np.bool_]:
    """Which regions of an image stay: (num_regions,) bool.

    Each one is dropped with `probability`, but where all would be, one stays.
    """
    draws = np.array(uniforms(key, num_regions))
    keep = draws >= probability
    if num_regions and not keep.any():
        keep[draws.argmax()] = True
    return keep


def mask_words(
    words: Sequence[Sequence[int]],
    key: np.uint64,
    mask_token: int,
    random_tokens: npt.NDArray[np.int64],
    share: float = 0.2,
) -> list[list[int]]:
    """The words of a caption, each a list of token ids, after about `share` of them were touched.

    Of the touched words half become `mask_token`, a tenth `random_tokens`, piece by piece, and the rest are
    deleted; where that would leave no word, all stay as they were.
    """
    pieces = sum(len(word) for word in words)
    draws = np.array(uniforms(key, len(words) + pieces))
    chosen = random_tokens[(draws[len(words) :] * len(random_tokens)).astype(np.int64)].tolist()
    masked: list[list[int]] = []
    for word, draw in zip(words, draws[: len(words)].tolist(), strict=True):
        replacement, chosen = chosen[: len(word)], chosen[len(word) :]
        if draw >= share:
            masked.append(list(word))
        elif draw < share * _MASKED:
            masked.append([mask_token] * len(word))
        elif draw < share * (_MASKED + _REPLACED):
            masked.append(replacement)
    return masked or [list(word) for word in words]
