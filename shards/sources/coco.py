"""COCO's caption files, `captions_train2014.json` and its like of 2014 and 2017.

    {"images": [{"id", "file_name"}, ...], "annotations": [{"id", "image_id", "caption"}, ...]}

The image id is COCO's, the caption ids are the annotations'; captions stand in the order of their ids, as in the
Karpathy file. With a Karpathy file, images are given to its splits by COCO id (the files of 2017 name them
otherwise than it does) and stand in its order, so that the 1K folds of the test split are the published ones.
"""

import re
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from shards.errors import DataError
from shards.sources.images import check_images, read_image
from shards.sources.karpathy import read_assignment
from shards.sources.listed import Splits, listed_source
from shards.sources.record import Record, Skipped, Source
from shards.sources.text import (
    check_split_name,
    clean_captions,
    describe,
    file_identity,
    is_int64,
    is_unicode,
    key_of_name,
    read_json,
)


@dataclass
class _Image:
    file_name: str
    folder: Path
    annotations: Path
    captions: list[tuple[int, str]] = field(default_factory=list)
    """(annotation id, text)."""


def read_coco(
    annotations: list[Path], images: list[Path], karpathy: Path | None = None, split: str | None = None
) -> Source:
    """Read caption files, each with its image folder, or all with the one that is given.

    The split is the Karpathy file's, or `split`, or the one that each file's name tells. Images that only one of
    the annotations and the Karpathy file knows are listed as skipped. Raises `DataError` for another layout, an
    image that stands in two files, and a split that cannot be told.
    """
    if len(images) not in (1, len(annotations)):
        raise DataError(
            f"--images: {len(images)} folders for {len(annotations)} --annotations; give one folder for each "
            "file, in the same order, or one for all"
        )
    for folder in images:
        check_images(folder)
    if split is not None:
        check_split_name(split, "--split")
    if karpathy is not None and split is not None:
        raise DataError("--split: the Karpathy file tells the splits; give one of --karpathy and --split")
    names = {} if karpathy else {path: split or _split_of(path) for path in annotations}
    found: dict[int, _Image] = {}
    orphans: list[Skipped] = []
    for path, folder in zip(annotations, images * len(annotations), strict=False):
        orphans += _read_file(path, folder, found)
    splits: Splits = {}
    if karpathy is not None:
        _by_karpathy(found, karpathy, splits)
    else:
        for image_id, image in found.items():
            splits.setdefault(names[image.annotations], []).extend(_items(image_id, image))
    next(iter(splits.values())).extend(orphans)
    identity: dict[str, object] = {
        "format": "coco",
        "annotations": [file_identity(path) for path in annotations],
        "images": [str(folder.absolute()) for folder in images],
        "karpathy": file_identity(karpathy) if karpathy else None,
        "split": split,
    }
    inputs = (*annotations, *images, *([karpathy] if karpathy else []))
    return listed_source("coco", splits, identity, inputs, ", ".join(map(str, annotations)))


def _split_of(path: Path) -> str:
    found = set(re.findall(r"(?:^|[_.-])(train|val|test)(?=[\d_.-]|$)", path.stem))
    if len(found) != 1:
        raise DataError(f"--annotations {path}: the file's name tells no split; give --split or --karpathy")
    return str(found.pop())


def _read_file(path: Path, folder: Path, found: dict[int, _Image]) -> list[Skipped]:
    """Add the file's images to `found`; returns the annotations whose image it does not list."""
    document = read_json(path)
    lists = [document.get(name) if isinstance(document, dict) else None for name in ("images", "annotations")]
    if not all(isinstance(one, list) and one for one in lists):
        raise DataError(
            f"{path}: not COCO's caption layout: an object with lists `images` and `annotations` is expected, "
            f"found {describe(document)}"
        )
    here: dict[int, _Image] = {}
    for number, entry in enumerate(lists[0] or ()):
        where = f"{path}: images[{number}]"
        image_id, file_name = _field(entry, "id", where), _field(entry, "file_name", where)
        if image_id in found or image_id in here:
            other = (found.get(image_id) or here[image_id]).annotations
            raise DataError(f"{where}: image {image_id} stands in {other} already")
        here[image_id] = _Image(file_name, folder, path)
    orphans = []
    for number, entry in enumerate(lists[1] or ()):
        where = f"{path}: annotations[{number}]"
        caption_id, image_id = _field(entry, "id", where), _field(entry, "image_id", where)
        caption = _field(entry, "caption", where)
        if image_id in here:
            here[image_id].captions.append((caption_id, caption))
        else:
            orphans.append(Skipped(f"annotation {caption_id}", f"{path} lists no image {image_id}"))
    found.update(here)
    return orphans


def _field(entry: Any, name: str, where: str) -> Any:
    if not isinstance(entry, dict):
        raise DataError(f"{where}: not COCO's caption layout: an object is expected, found {describe(entry)}")
    value = entry.get(name)
    if name in ("file_name", "caption"):
        if not isinstance(value, str) or (name == "file_name" and not value):
            raise DataError(f"{where}: not COCO's caption layout: `{name}` is missing or not a text")
    elif not is_int64(value):
        raise DataError(f"{where}: not COCO's caption layout: `{name}` is {value!r}, not an integer of 64 bits")
    return value


def _by_karpathy(found: dict[int, _Image], karpathy: Path, splits: Splits) -> None:
    rest = dict(found)
    for image_id, (split, _) in read_assignment(karpathy, "cocoid").items():
        image = rest.pop(image_id, None)
        items = splits.setdefault(split, [])
        if image is None:
            items.append(Skipped(f"image {image_id}", f"{karpathy} names it, the annotations do not"))
        else:
            items.extend(_items(image_id, image))
    first = next(iter(splits.values()))
    first.extend(Skipped(image.file_name, f"{karpathy} does not name image {one}") for one, image in rest.items())


def _items(image_id: int, image: _Image) -> list[Record | Skipped]:
    name = image.file_name
    pairs = sorted(image.captions)
    places, captions, skipped = clean_captions([text for _, text in pairs], name)
    if not captions or not is_unicode(name):
        reason = "the file name is not valid UTF-8" if captions else "the image has no usable caption"
        return [*skipped, Skipped(name, reason)]
    load = partial(read_image, image.folder, name)
    caption_ids = tuple(pairs[place][0] for place in places)
    return [*skipped, Record(key_of_name(name), image_id, tuple(captions), load, caption_ids=caption_ids)]
