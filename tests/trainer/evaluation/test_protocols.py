"""Which protocols a split allows, by its name and size."""

import json
from pathlib import Path

import numpy as np
import pytest

from trainer.evaluation.protocol import SplitIds
from trainer.evaluation.protocols import applicable


def split(dataset: str, name: str, images: int, captions: int = 5) -> SplitIds:
    owner = np.repeat(np.arange(images), captions)
    return SplitIds(dataset, name, np.arange(images), np.full(len(owner), -1), owner)


def keys(ids: SplitIds) -> list[str]:
    return [protocol.key for view in applicable(ids).views for protocol in view.protocols]


def test_flickr30k_is_known_by_its_annotations(test_data: Path) -> None:
    entries = json.loads((test_data / "annotations" / "dataset_flickr30k.json").read_text())
    for name, expected in (("test", "flickr30k_1k"), ("val", "whole_split")):
        images = [image for image in entries["images"] if image["split"] == name]
        owner = np.repeat(np.arange(len(images)), [len(image["sentences"]) for image in images])
        ids = SplitIds(entries["dataset"], name, np.arange(len(images)), np.full(len(owner), -1), owner)
        assert keys(ids) == [expected]


@pytest.mark.parametrize(
    ("ids", "title", "reason"),
    [
        (split("flickr8k", "test", 1000), "Flickr30K 1K", "the data set is flickr8k"),
        (split("flickr30k", "val", 1000), "Flickr30K 1K", "the split is val, the published one is test"),
        (split("flickr30k", "test", 999), "Flickr30K 1K", "999 images, the published split has 1,000"),
        (split("flickr30k", "test", 1000, 4), "Flickr30K 1K", "an image has 4 captions, the published split has 5"),
        (split("flickr30k", "test", 1000, 6), "Flickr30K 1K", "6,000 captions, the published split has 5"),
        (split("coco", "test", 1000), "COCO 5K", "1,000 images, the published split has 5,000"),
        (split("coco", "val", 5000), "ECCV Caption", "the split is val"),
        (split("demo", "test", 10), "CxC", "the data set is demo"),
    ],
)
def test_what_is_not_as_published_is_left_out_with_the_reason(ids: SplitIds, title: str, reason: str) -> None:
    assert keys(ids) == ["whole_split"]
    assert applicable(ids).left_out[title].startswith(reason)


def test_an_image_without_a_caption_is_no_query() -> None:
    ids = SplitIds("demo", "test", np.arange(3), np.array([-1, -1]), np.array([2, 0]))
    (view,) = applicable(ids).views
    assert view.protocols[0].i2t.images.tolist() == [0, 2]
    assert view.protocols[0].t2i.tasks[0].last == 3
