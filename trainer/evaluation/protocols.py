"""The protocols that a split allows: which queries, which right items, searched among what.

Which one applies follows from the data set's name, split and size in the manifest, and from COCO's ids; what is
left out is said, with the reason.
"""

from dataclasses import dataclass, field

import numpy as np

from trainer.evaluation.coco_test import CAPTIONS_AN_IMAGE, FOLDS, IMAGES, Ids, coco_test
from trainer.evaluation.measures import OF_ALL, RECALLS
from trainer.evaluation.ranks import Rows, Task, group

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


def applicable(ids: SplitIds) -> Applicable:
    """The protocols for a split."""
    found = Applicable()
    counts = np.bincount(ids.caption_image, minlength=len(ids.image_ids))
    reason = _differs(ids, "flickr30k", 1000, counts)
    is_flickr = not reason and counts.max() == CAPTIONS_AN_IMAGE
    if not is_flickr:
        found.left_out[TITLES[FLICKR30K]] = reason or f"an image has {counts.max()} captions; the published has 5"
    coco = _coco_views(ids, counts, found)
    if not coco or len(ids.caption_image) != len(ids.image_ids) * CAPTIONS_AN_IMAGE:
        key = FLICKR30K if is_flickr else WHOLE
        title = TITLES[FLICKR30K] if is_flickr else f"{ids.dataset} {ids.split}"
        found.views.append(View((whole(key, title, ids.caption_image, len(ids.image_ids)),)))
    found.views += coco
    return found


def whole(key: str, title: str, caption_image: Rows, num_images: int) -> Protocol:
    """Every image among all captions, every caption among all images; images without a caption are no queries."""
    images, right = group(caption_image)
    i2t = Task(images, right, 0, len(caption_image))
    t2i = Task(np.arange(len(caption_image)), caption_image[:, None], 0, num_images)
    return Protocol(key, title, Direction((i2t,), images), Direction((t2i,), caption_image))


def _differs(ids: SplitIds, dataset: str, images: int, counts: Rows) -> str:
    """Why this is not a published test split; empty where it is one."""
    if ids.dataset.lower() != dataset:
        return f"the data set is {ids.dataset}"
    if ids.split != "test":
        return f"the split is {ids.split}, the published one is test"
    if len(ids.image_ids) != images:
        return f"{len(ids.image_ids):,} images, the published split has {images:,}"
    if counts.min() < CAPTIONS_AN_IMAGE:
        return f"an image has {counts.min()} captions, the published split has {CAPTIONS_AN_IMAGE} of each"
    return ""


def _coco_views(ids: SplitIds, counts: Rows, found: Applicable) -> list[View]:
    if reason := _differs(ids, "coco", IMAGES, counts):
        found.left_out |= {TITLES[key]: reason for key in (COCO_1K, COCO_5K, CXC, ECCV)}
        return []
    published = coco_test()
    images = _rows_of(published.images, ids.image_ids)
    captions = None
    if images is None:
        images = np.arange(IMAGES)
        reason = "the image ids are not COCO's"
        found.notes.append(f"{TITLES[COCO_1K]}: {reason}, so the folds follow the order of the shards")
    else:
        captions = _rows_of(published.captions, ids.caption_ids)
        reason = (
            "the samples hold no or other caption ids than COCO's; convert them again with `itm shards convert`"
        )
    if captions is None:
        found.left_out |= {TITLES[key]: reason for key in (CXC, ECCV)}
        first = np.argsort(ids.caption_image, kind="stable")
        start = np.cumsum(counts) - counts
        captions = first[(start[images][:, None] + np.arange(CAPTIONS_AN_IMAGE)).ravel()]
        protocols = coco_recalls()
    else:
        protocols = (*coco_recalls(), *annotated())
    if len(ids.caption_image) > len(captions):
        extra = len(ids.caption_image) - len(captions)
        found.notes.append(
            f"COCO: of {len(ids.caption_image):,} captions the first five of each image; {extra} left out"
        )
    assert (ids.caption_image[captions] == np.repeat(images, CAPTIONS_AN_IMAGE)).all(), (
        "captions follow their images"
    )
    return [View(protocols, images, captions)]


def _rows_of(wanted: Ids, held: Ids) -> Rows | None:
    """Where each of `wanted` stands in `held`; None unless all do."""
    order = np.argsort(held, kind="stable")
    rows = order[np.searchsorted(held, wanted, sorter=order).clip(max=len(held) - 1)]
    return rows if (held[rows] == wanted).all() else None


def coco_recalls() -> tuple[Protocol, ...]:
    """COCO 5K and 1K over the published order: images by the thousand, captions by the five thousand."""
    owner = np.repeat(np.arange(IMAGES), CAPTIONS_AN_IMAGE)
    captions = np.arange(len(owner)).reshape(IMAGES, CAPTIONS_AN_IMAGE)
    size = IMAGES // FOLDS
    i2t, t2i = [], []
    for first in range(0, IMAGES, size):
        rows = np.arange(first, first + size)
        words = captions[rows]
        low, high = int(words[0, 0]), int(words[-1, -1]) + 1
        i2t.append(Task(rows, words, low, high))
        t2i.append(Task(words.ravel(), owner[low:high, None], first, first + size))
    ways = Direction(tuple(i2t), np.arange(IMAGES)), Direction(tuple(t2i), owner)
    return whole(COCO_5K, TITLES[COCO_5K], owner, IMAGES), Protocol(COCO_1K, TITLES[COCO_1K], *ways)


def annotated() -> tuple[Protocol, ...]:
    """CxC (recalls) and ECCV Caption (mAP@R, R-Precision, R@1) over the published order."""
    published = coco_test()
    image_row = {int(one): row for row, one in enumerate(published.images)}
    caption_row = {int(one): row for row, one in enumerate(published.captions)}
    protocols = []
    for key, annotation, every in ((CXC, published.cxc, False), (ECCV, published.eccv, True)):
        i2t = _direction(annotation.i2t, image_row, caption_row, 1, every)
        t2i = _direction(annotation.t2i, caption_row, image_row, CAPTIONS_AN_IMAGE, every)
        protocols.append(Protocol(key, TITLES[key], i2t, t2i))
    return tuple(protocols)


def _direction(
    right: dict[int, list[int]],
    queries: dict[int, int],
    gallery: dict[int, int],
    queries_an_image: int,
    every: bool,
) -> Direction:
    ordered = sorted((queries[query], items) for query, items in right.items())
    rows = np.array([row for row, _items in ordered])
    table = np.full((len(rows), max(len(items) for _row, items in ordered)), -1)
    for place, (_row, items) in enumerate(ordered):
        held = [gallery[item] for item in items if item in gallery]
        table[place, : len(held)] = held
    relevant = np.array([len(items) for _row, items in ordered]) if every else None
    task = Task(rows, table, 0, len(gallery), every)
    return Direction((task,), rows // queries_an_image, relevant)
