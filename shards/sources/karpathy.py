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
from shards.sources.record import Record, Skipped, Source, Split
from shards.sources.text import clean_captions, describe, file_identity, is_unicode, key_of_name, read_json

SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}


def read_karpathy(annotations: Path, images: Path) -> Source:
    """Read the annotation file; image files below `images` are opened only when a record is loaded.

    Empty captions, and captions and file names that are no valid Unicode, are left out and listed. Raises
    `DataError` for a missing file or folder and for a file of another layout.
    """
    if not images.is_dir():
        raise DataError(f"--images {images}: no such folder")
    document = read_json(annotations)
    entries = document.get("images") if isinstance(document, dict) else None
    if not isinstance(entries, list) or not entries:
        raise DataError(
            f"{annotations}: not the Karpathy layout: an object with a list `images` is expected, "
            f"found {describe(document)}"
        )
    splits: dict[str, list[Record | Skipped]] = {}
    keys: set[tuple[str, str]] = set()
    for number, entry in enumerate(entries):
        where = f"{annotations}: images[{number}]"
        split, items = _items(entry, number, images, where)
        for record in (item for item in items if isinstance(item, Record)):
            if (split, record.key) in keys:
                raise DataError(
                    f"{where}: a second image named {record.key} in split {split}; names must be unique"
                )
            keys.add((split, record.key))
        splits.setdefault(split, []).extend(items)
    if not keys:
        raise DataError(f"{annotations}: no image has a usable caption")
    return Source(
        str(document.get("dataset", annotations.stem)),
        [Split(name, items, sum(isinstance(item, Record) for item in items)) for name, items in splits.items()],
        {"format": "karpathy", "annotations": file_identity(annotations), "images": str(images.absolute())},
    )


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
    split = SPLITS.get(str(entry.get("split")))
    if split is None:
        raise DataError(f"{where}: split {entry.get('split')!r} is none of {', '.join(SPLITS)}")
    image_id = entry.get("cocoid", entry.get("imgid", number))
    if not isinstance(image_id, int) or not -(2**63) <= image_id < 2**63:
        raise DataError(f"{where}: the image id {image_id!r} is not an integer of 64 bits")
    for place, sentence in enumerate(sentences):
        if not isinstance(sentence, dict) or not isinstance(sentence.get("raw"), str):
            raise DataError(f"{where}: not the Karpathy layout: sentences[{place}] has no text `raw`")
    places, captions, skipped = clean_captions([sentence["raw"] for sentence in sentences], filename)
    if not captions or not is_unicode(filename):
        reason = "the file name is not valid UTF-8" if captions else "the image has no usable caption"
        return split, [*skipped, Skipped(filename, reason)]
    ids = [sentences[place].get("sentid") for place in places]
    load = partial(Path.read_bytes, images / folder / filename)
    caption_ids = tuple(ids) if all(isinstance(one, int) for one in ids) else ()
    record = Record(key_of_name(filename), image_id, tuple(captions), load, caption_ids=caption_ids)
    return split, [*skipped, record]
