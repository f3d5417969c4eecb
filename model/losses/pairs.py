"""Pairs of an image and its text, as losses see them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from model.losses.tiles import Keys, KeyStream


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

    def blocks(self) -> "Iterator[tuple[int, Pairs]]":
        """As of `Slots`."""
        yield 0, self

    def look_up(self, images: torch.Tensor, texts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As of `Slots`."""
        return self.images.detach().index_select(0, images), self.texts.detach().index_select(0, texts)


class Slots(Protocol):
    """Pairs without gradient that may lie on several ranks, which all read them together: what a queue is."""

    @property
    def ids(self) -> torch.Tensor:
        """(M,) int64, of all."""

    @property
    def valid(self) -> torch.Tensor:
        """(M,) bool, of all."""

    @property
    def image_keys(self) -> Keys | KeyStream:
        """The images as keys."""

    @property
    def text_keys(self) -> Keys | KeyStream:
        """The texts as keys."""

    def __len__(self) -> int: ...

    def blocks(self) -> Iterator[tuple[int, Pairs]]:
        """All pairs once, in order: the first one's place and the pairs of a block."""

    def look_up(self, images: torch.Tensor, texts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(b,), (b,) int64 places, each rank its own -> (b, D) images and (b, D) texts that lie there."""


@dataclass(frozen=True)
class Memory:
    """What the momentum towers know."""

    own: Pairs
    """b keys of this rank's pairs."""
    batch: Pairs
    """G keys of the global batch."""
    queue: Slots
    """M keys of past batches; where a row is not valid, its vectors are finite and its id may be any."""
