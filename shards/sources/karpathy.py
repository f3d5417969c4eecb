"""The Karpathy JSON layout: `dataset_flickr8k.json`, `dataset_flickr30k.json`, `dataset_coco.json`.

    {"dataset": NAME, "images": [{"filename", "split", "sentences": [{"raw", "sentid"?}, ...],
                                  "filepath"?, "imgid"?, "cocoid"?}, ...]}

Karpathy and Fei-Fei, "Deep visual-semantic alignments for generating image descriptions", CVPR 2015.
COCO's `restval` images belong to the training split, as in all published results.
"""

from functools import partial
from pathlib import Path
from typing import Any

from shards.errors import DataError
from shards.sources.images import check_images, read_image
from shards.sources.listed import Splits, listed_source
from shards.sources.record import Record, Skipped, Source
from shards.sources.text import (
    clean_captions,
    describe,
    file_identity,
    is_int64,
    is_unicode,
    key_of_name,
    read_json,
)

SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}


def read_karpathy(annotations: Path, images: Path) -> Source:
    """Read the annotation file; image files below `images` are opened only when a record is loaded.

    Empty captions, and captions and file names that are no valid Unicode, are left out and listed. Raises
    `DataError` for a missing file or folder and for a file of another layout.
    """
    check_images(images)
    document, entries = _document(annotations, "--annotations")
    splits: Splits = {}
    for number, entry in enumerate(entries):
        where = f"{annotations}: images[{number}]"
        split, items = _items(entry, number, images, where)
        splits.setdefault(split, []).extend(items)
    return listed_source(
        str(document.get("dataset", annotations.stem)),
        splits,
        {"format": "karpathy", "annotations": file_identity(annotations), "images": str(images.absolute())},
        (annotations, images),
        str(annotations),
    )


def read_assignment(path: Path, by: str) -> dict[Any, tuple[str, int]]:
    """The split and `imgid` of each image, by its "cocoid" or its "filename", in the file's order.

    Raises `DataError` for a file of another layout, without that field, or that names an image twice.
    """
    found: dict[Any, tuple[str, int]] = {}
    for number, entry in enumerate(_document(path, "--karpathy")[1]):
        where = f"{path}: images[{number}]"
        if not isinstance(entry, dict):
            raise DataError(f"{where}: not the Karpathy layout: an object is expected, found {describe(entry)}")
        name = entry.get(by)
        if not (is_int64(name) if by == "cocoid" else isinstance(name, str)):
            raise DataError(f"{where}: no usable `{by}`; is it the Karpathy file of this data set?")
        if name in found:
            raise DataError(f"{where}: a second image with {by} {name}")
        found[name] = _split(entry, where), _image_id(entry, ("imgid",), number, where)
    return found


def _document(path: Path, option: str) -> tuple[dict[str, Any], list[Any]]:
    document = read_json(path, option)
    entries = document.get("images") if isinstance(document, dict) else None
    if not isinstance(entries, list) or not entries:
        raise DataError(
            f"{path}: not the Karpathy layout: an object with a list `images` is expected, "
            f"found {describe(document)}"
        )
    return document, entries


def _split(entry: dict[str, Any], where: str) -> str:
    split = SPLITS.get(str(entry.get("split")))
    if split is None:
        raise DataError(f"{where}: split {entry.get('split')!r} is none of {', '.join(SPLITS)}")
    return split


def _image_id(entry: dict[str, Any], fields: tuple[str, ...], number: int, where: str) -> int:
    image_id = next((entry[field] for field in fields if field in entry), number)
    if not is_int64(image_id):
        raise DataError(f"{where}: the image id {image_id!r} is not an integer of 64 bits")
    return int(image_id)


def _items(entry: Any, number: int, images: Path, where: str) -> tuple[str, list[Record | Skipped]]:
    if not isinstance(entry, dict):
        raise DataError(f"{where}: not the Karpathy layout: an object is expected, found {describe(entry)}")
    filename, folder, sentences = entry.get("filename"), entry.get("filepath", ""), entry.get("sentences")
    if not isinstance(filename, str) or not filename:
        raise DataError(f"{where}: not the Karpathy layout: `filename` is missing or not a text")
    where = f"{where} ({filename})"
    if not isinstance(folder, str):
        raise DataError(f"{where}: not the Karpathy layout: `filepath` is not a text")
    if not isinstance(sentences, list):
        raise DataError(f"{where}: not the Karpathy layout: `sentences` is missing or not a list")
    split = _split(entry, where)
    image_id = _image_id(entry, ("cocoid", "imgid"), number, where)
    for place, sentence in enumerate(sentences):
        if not isinstance(sentence, dict) or not isinstance(sentence.get("raw"), str):
            raise DataError(f"{where}: not the Karpathy layout: sentences[{place}] has no text `raw`")
    places, captions, skipped = clean_captions([sentence["raw"] for sentence in sentences], filename)
    if not captions or not is_unicode(filename):
        reason = "the file name is not valid UTF-8" if captions else "the image has no usable caption"
        return split, [*skipped, Skipped(filename, reason)]
    ids = [sentences[place].get("sentid") for place in places]
    load = partial(read_image, images, Path(folder, filename))
    caption_ids = tuple(ids) if all(isinstance(one, int) for one in ids) else ()
    record = Record(key_of_name(filename), image_id, tuple(captions), load, caption_ids=caption_ids)
    return split, [*skipped, record]
