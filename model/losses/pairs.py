"""Pairs of an image and its text, as losses see them."""

from dataclasses import dataclass

import torch

from model.losses.tiles import Keys


@dataclass(frozen=True)
class Pairs:
    """n pairs of an image and its text."""

    images: torch.Tensor
    """(n, D) normalised."""
    texts: torch.Tensor
    """(n, D) normalised."""
    ids: torch.Tensor
    """(n,) int64: pairs with one id are no negatives of each other, and no soft positives either."""
    valid: torch.Tensor
    """(n,) bool, False for rows that hold no pair."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def image_keys(self) -> Keys:
        return Keys(self.images, self.ids, self.valid)

    @property
    def text_keys(self) -> Keys:
        return Keys(self.texts, self.ids, self.valid)

    def part(self, first: int, last: int, dtype: torch.dtype) -> "Pairs":
        rows = slice(first, last)
        return Pairs(self.images[rows].to(dtype), self.texts[rows].to(dtype), self.ids[rows], self.valid[rows])


@dataclass(frozen=True)
class Memory:
    """What the momentum towers know."""

    own: Pairs
    """b keys of this rank's pairs."""
    batch: Pairs
    """G keys of the global batch."""
    queue: Pairs
    """M keys of past batches; where a row is not valid, its vectors are finite and its id may be any."""
