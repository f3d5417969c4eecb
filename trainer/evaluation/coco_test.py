"""COCO's test split of 5,000 images as it was published, with the right items of ECCV Caption and CxC.

The ids and annotations are those of the package `eccv_caption` (Chun et al., "ECCV Caption", ECCV 2022), which
carries those of CrissCrossed Captions (Parekh et al., EACL 2021), too.
"""

import warnings
from dataclasses import dataclass
from functools import cache

import numpy as np

from trainer.evaluation.protocol import Ids

IMAGES, CAPTIONS_AN_IMAGE, FOLDS = 5000, 5, 5


@dataclass(frozen=True)
class Annotation:
    """Right items by COCO's ids: image -> captions, caption -> images."""

    i2t: dict[int, list[int]]
    t2i: dict[int, list[int]]


@dataclass(frozen=True)
class CocoTest:
    """Of the Karpathy test split."""

    images: Ids
    """(5000,) in the published order: each thousand is a fold."""
    captions: Ids
    """(25000,) five of each image, in the order of the images."""
    cxc: Annotation
    eccv: Annotation


@cache
def coco_test() -> CocoTest:
    """Read the package's files (0.2 s)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a faster JSON reader is not installed
        from eccv_caption import Metrics

        metrics = Metrics()
    captions = metrics.coco_ids.astype(np.int64)
    owner = metrics.coco_gts["t2i"]
    images = np.array([owner[int(caption)][0] for caption in captions[::CAPTIONS_AN_IMAGE]])
    assert len(np.unique(images)) == IMAGES, "the captions stand in the order of their images"
    return CocoTest(images, captions, Annotation(**metrics.cxc_gts), Annotation(**metrics.eccv_gts))
