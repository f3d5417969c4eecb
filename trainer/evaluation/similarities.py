"""The similarities of a split's images and captions, a block of queries at a time."""

from collections.abc import Sequence

import torch

BLOCK = 2**24
"""Similarities handed out at once, 64 MiB: memory does not grow with the number of queries."""
HELD = 2**27
"""Up to so many, 512 MiB, are computed once and serve both directions; COCO's 5,000 x 25,000 are fewer."""


class Similarities:
    """(N, C) float32: the sum over the members of an ensemble of the dot products of their embeddings.

    The sum ranks as the average does. Which similarities are computed together depends on the shapes alone, so the
    same embeddings give the same numbers in any process.
    """

    def __init__(self, images: Sequence[torch.Tensor], texts: Sequence[torch.Tensor]) -> None:
        """(N, D_m) images and (C, D_m) texts of each member m, on one device."""
        self.images, self.texts = list(images), list(texts)
        self.device = self.images[0].device
        self.num_images, self.num_texts = len(self.images[0]), len(self.texts[0])
        self.is_held = self.num_images * self.num_texts <= HELD
        self._held = _products(self.images, self.texts) if self.is_held else None

    def block_size(self, by_text: bool) -> int:
        """Queries a block; `by_text` where captions are the queries."""
        return max(1, BLOCK // max(1, self.num_images if by_text else self.num_texts))

    def block(self, by_text: bool, start: int, stop: int) -> torch.Tensor:
        """(stop - start, C or N) of the queries `start .. stop - 1`."""
        if self._held is not None:
            return self._held[:, start:stop].T.contiguous() if by_text else self._held[start:stop]
        queries, gallery = (self.texts, self.images) if by_text else (self.images, self.texts)
        return _products([one[start:stop] for one in queries], gallery)


def _products(queries: Sequence[torch.Tensor], gallery: Sequence[torch.Tensor]) -> torch.Tensor:
    scores = queries[0] @ gallery[0].T
    for more, theirs in zip(queries[1:], gallery[1:], strict=True):
        scores.addmm_(more, theirs.T)
    return scores
