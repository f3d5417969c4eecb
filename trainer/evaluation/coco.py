"""COCO's protocols: 5K, 1K in five folds, CxC and ECCV Caption."""

import numpy as np

from trainer.evaluation.coco_test import CAPTIONS_AN_IMAGE, FOLDS, IMAGES, CocoTest, coco_test
from trainer.evaluation.protocol import (
    COCO_1K,
    COCO_5K,
    CXC,
    ECCV,
    TITLES,
    Applicable,
    Direction,
    Ids,
    Protocol,
    SplitIds,
    View,
    whole,
)
from trainer.evaluation.ranks import Rows, Task


def coco_view(ids: SplitIds, found: Applicable) -> View:
    """The protocols of the published test split, 5,000 images with five captions or more each.

    Images and captions are taken by COCO's ids, so that folds are the published ones whatever the order of the
    shards. Without the ids of the images, they follow the shards; without those of the captions, each image's first
    five are taken. CxC and ECCV Caption need both. `found` is told what is left out.
    """
    published = coco_test()
    images = _rows_of(published.images, ids.image_ids)
    captions = None
    if images is None:
        images, reason = np.arange(IMAGES), "the image ids are not COCO's"
        found.notes.append(f"{TITLES[COCO_1K]}: {reason}, so the folds follow the order of the shards")
    else:
        captions = _rows_of(published.captions, ids.caption_ids)
        if captions is not None and (ids.caption_image[captions] != np.repeat(images, CAPTIONS_AN_IMAGE)).any():
            captions = None
        reason = "the captions have no ids, or not COCO's; convert the annotations with `itm shards convert`"
    is_annotated = captions is not None
    if captions is None:
        found.left_out |= {TITLES[key]: reason for key in (CXC, ECCV)}
        order = np.argsort(ids.caption_image, kind="stable")
        first = np.searchsorted(ids.caption_image[order], images)
        captions = order[(first[:, None] + np.arange(CAPTIONS_AN_IMAGE)).ravel()]
    if len(ids.caption_image) > len(captions):
        found.notes.append(f"COCO: of {len(ids.caption_image):,} captions its protocols take five of each image")
    return View(coco_protocols(published, annotated=is_annotated), images, captions)


def _rows_of(wanted: Ids, held: Ids) -> Rows | None:
    """Where each of `wanted` stands in `held`; None unless all do."""
    order = np.argsort(held, kind="stable")
    rows = order[np.searchsorted(held, wanted, sorter=order).clip(max=len(held) - 1)]
    return rows if (held[rows] == wanted).all() else None


def coco_protocols(published: CocoTest, *, annotated: bool) -> tuple[Protocol, ...]:
    """COCO 5K and 1K, and where `annotated` CxC (recalls) and ECCV Caption (mAP@R, R-Precision, R@1).

    They are over images and captions in the published order: the five captions of an image follow each other, and a
    fifth of the images is a fold.
    """
    images = len(published.images)
    owner = np.repeat(np.arange(images), CAPTIONS_AN_IMAGE)
    captions = np.arange(len(owner)).reshape(images, CAPTIONS_AN_IMAGE)
    i2t, t2i = [], []
    for rows in np.split(np.arange(images), FOLDS):
        words = captions[rows]
        low, high = int(words[0, 0]), int(words[-1, -1]) + 1
        i2t.append(Task(rows, words, low, high))
        t2i.append(Task(words.ravel(), owner[low:high, None], int(rows[0]), int(rows[-1]) + 1))
    ways = Direction(tuple(i2t), np.arange(images)), Direction(tuple(t2i), owner)
    protocols = [whole(COCO_5K, TITLES[COCO_5K], owner, images), Protocol(COCO_1K, TITLES[COCO_1K], *ways)]
    if annotated:
        image_row = {int(one): row for row, one in enumerate(published.images)}
        caption_row = {int(one): row for row, one in enumerate(published.captions)}
        for key, annotation, every in ((CXC, published.cxc, False), (ECCV, published.eccv, True)):
            forth = _direction(annotation.i2t, image_row, caption_row, 1, every)
            back = _direction(annotation.t2i, caption_row, image_row, CAPTIONS_AN_IMAGE, every)
            protocols.append(Protocol(key, TITLES[key], forth, back))
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
