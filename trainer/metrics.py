"""Recalls of a split, in both directions, with any number of captions an image.

Ties count against the model, as `trainer.evaluation.ranks` says.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from trainer.evaluation.measures import RANKS
from trainer.evaluation.protocol import whole
from trainer.evaluation.ranks import places
from trainer.evaluation.similarities import Similarities


@dataclass(frozen=True)
class Retrieval:
    """Recall at 1, 5 and 10 in percent, image to text and text to image."""

    i2t: dict[str, float]
    t2i: dict[str, float]
    num_images: int
    num_captions: int

    @property
    def rsum(self) -> float:
        """Sum of the six recalls."""
        return sum(self.i2t.values()) + sum(self.t2i.values())

    def as_dict(self) -> dict[str, object]:
        return {
            "i2t": self.i2t,
            "t2i": self.t2i,
            "rsum": self.rsum,
            "num_images": self.num_images,
            "num_captions": self.num_captions,
        }


def recall_at_k(ranks: npt.NDArray[np.int64]) -> dict[str, float]:
    """{"r1", "r5", "r10"} in percent from 0-based ranks."""
    return {f"r{k}": float(np.mean(100.0 * (ranks < k))) for k in RANKS}


def retrieval_ranks(
    images: torch.Tensor, texts: torch.Tensor, caption_image: torch.Tensor
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """0-based ranks of the right item for every image (N,) and every caption (C,).

    (N, D) images, (C, D) texts, both normalised, and (C,) the image that each caption describes. An image's
    rank is that of its best-ranked caption; its other captions do not stand in its way. An image without a
    caption is no query, so it has no rank.
    """
    protocol = whole("", "", caption_image.cpu().numpy(), len(images))
    similarities = Similarities([images], [texts])
    (i2t,) = places(similarities, protocol.i2t.tasks, by_text=False)
    (t2i,) = places(similarities, protocol.t2i.tasks, by_text=True)
    return i2t[:, 0], t2i[:, 0]


def retrieval(images: torch.Tensor, texts: torch.Tensor, caption_image: torch.Tensor) -> Retrieval:
    """Recalls of embeddings; shapes as in `retrieval_ranks`."""
    i2t, t2i = retrieval_ranks(images, texts, caption_image)
    return Retrieval(recall_at_k(i2t), recall_at_k(t2i), len(images), len(texts))


def chance(caption_image: npt.NDArray[np.int64], num_images: int) -> Retrieval:
    """The expected recalls of a random ranking of the same data.

    Text to image: k of N. Image to text: 1 minus the chance that none of its m captions is among k drawn
    from C without replacement.
    """
    captions = len(caption_image)
    counts = np.bincount(caption_image, minlength=num_images)
    counts = counts[counts > 0]
    i2t = {}
    for k in RANKS:
        missed = np.ones(len(counts))
        for drawn in range(min(k, captions)):
            missed *= np.maximum(captions - counts - drawn, 0) / (captions - drawn)
        i2t[f"r{k}"] = float(100 * np.mean(1 - missed))
    t2i = {f"r{k}": 100 * min(k, num_images) / num_images for k in RANKS}
    return Retrieval(i2t, t2i, num_images, captions)
