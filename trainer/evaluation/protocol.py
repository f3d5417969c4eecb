"""What a protocol is: which queries, which right items, searched among what."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from trainer.evaluation.measures import OF_ALL, RECALLS
from trainer.evaluation.ranks import Rows, Task, group

Ids = npt.NDArray[np.int64]
FLICKR30K, COCO_1K, COCO_5K, CXC, ECCV = "flickr30k_1k", "coco_1k", "coco_5k", "cxc", "eccv_caption"
TITLES = {
    FLICKR30K: "Flickr30K 1K",
    COCO_1K: "COCO 1K (mean of five folds)",
    COCO_5K: "COCO 5K",
    CXC: "CxC",
    ECCV: "ECCV Caption",
}
WHOLE = "whole_split"


@dataclass(frozen=True)
class Direction:
    """One direction of a protocol: a task, or one a fold."""

    tasks: tuple[Task, ...]
    images: Rows
    """(Q,) the image that each query is or belongs to; queries of all tasks one after the other."""
    relevant: Rows | None = None
    """(Q,) right items of each query, also those that the gallery lacks; None where the best one alone counts."""


@dataclass(frozen=True)
class Protocol:
    """What is measured under one name."""

    key: str
    title: str
    i2t: Direction
    t2i: Direction

    @property
    def measures(self) -> tuple[str, ...]:
        return RECALLS if self.i2t.relevant is None else OF_ALL


@dataclass(frozen=True)
class View:
    """Protocols over the same images and captions, as rows of the split's embeddings; None for all of them."""

    protocols: tuple[Protocol, ...]
    images: Rows | None = None
    captions: Rows | None = None


@dataclass
class Applicable:
    """What can be measured on a split. The first protocol of the first view stands for the split."""

    views: list[View] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    """Title -> reason."""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class SplitIds:
    """Whose embeddings these are."""

    dataset: str
    split: str
    image_ids: Ids
    """(N,)"""
    caption_ids: Ids
    """(C,); -1 where the data set has none."""
    caption_image: Rows
    """(C,) the image, as a row, that each caption describes."""


def whole(key: str, title: str, caption_image: Rows, num_images: int) -> Protocol:
    """Every image among all captions, every caption among all images; images without a caption are no queries."""
    images, right = group(caption_image)
    i2t = Task(images, right, 0, len(caption_image))
    t2i = Task(np.arange(len(caption_image)), caption_image[:, None], 0, num_images)
    return Protocol(key, title, Direction((i2t,), images), Direction((t2i,), caption_image))
