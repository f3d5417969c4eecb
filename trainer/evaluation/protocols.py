"""Which protocols a split allows.

That follows from the data set's name, split and size in the manifest, and from COCO's ids. What is left out is
said, with the reason.
"""

import numpy as np

from trainer.evaluation.coco import coco_view
from trainer.evaluation.coco_test import CAPTIONS_AN_IMAGE, IMAGES
from trainer.evaluation.protocol import (
    COCO_1K,
    COCO_5K,
    CXC,
    ECCV,
    FLICKR30K,
    TITLES,
    WHOLE,
    Applicable,
    SplitIds,
    View,
    whole,
)
from trainer.evaluation.ranks import Rows

FLICKR30K_IMAGES = 1000


def applicable(ids: SplitIds) -> Applicable:
    """The protocols for a split; the whole split is one of them, under a published name where it is one."""
    found = Applicable()
    counts = np.bincount(ids.caption_image, minlength=len(ids.image_ids))
    as_published = len(ids.caption_image) == CAPTIONS_AN_IMAGE * len(ids.image_ids)
    flickr = _differs(ids, "flickr30k", FLICKR30K_IMAGES, counts)
    if not flickr and not as_published:
        flickr = f"{len(ids.caption_image):,} captions, the published split has {CAPTIONS_AN_IMAGE} of each image"
    coco = _differs(ids, "coco", IMAGES, counts)
    if flickr:
        found.left_out[TITLES[FLICKR30K]] = flickr
    if coco:
        found.left_out |= {TITLES[key]: coco for key in (COCO_1K, COCO_5K, CXC, ECCV)}
    if coco or not as_published:
        key, title = (WHOLE, f"{ids.dataset} {ids.split}") if flickr else (FLICKR30K, TITLES[FLICKR30K])
        found.views.append(View((whole(key, title, ids.caption_image, len(ids.image_ids)),)))
    if not coco:
        found.views.append(coco_view(ids, found))
    return found


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
