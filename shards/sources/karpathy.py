"""The Karpathy JSON layout: `dataset_flickr8k.json`, `dataset_flickr30k.json`, `dataset_coco.json`.

    {"dataset": NAME, "images": [{"filename", "split", "sentences": [{"raw"}, ...],
                                  "filepath"?, "imgid"?, "cocoid"?}, ...]}

Karpathy and Fei-Fei, "Deep visual-semantic alignments for generating image descriptions", CVPR 2015.
COCO's `restval` images belong to the training split, as in all published results.
"""

import json
import re
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from shards.errors import DataError
from shards.sources.record import Record, Skipped

SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}


@dataclass
class KarpathyAnnotations:
    """By split: the records, and the images and captions that could not be taken over."""

    dataset: str
    splits: dict[str, list[Record]]
    skipped: dict[str, list[Skipped]] = field(default_factory=dict)


def read_karpathy(annotations: Path, images: Path) -> KarpathyAnnotations:
    """Read the annotation file; image files below `images` are opened only when a record is loaded.

    Empty captions, and captions and file names that are no valid Unicode, are left out and listed. Raises
    `DataError` for a missing file or folder and for a file of another layout.
    """
    if not images.is_dir():
        raise DataError(f"--images {images}: no such folder")
    document = _read_json(annotations)
    entries = document.get("images") if isinstance(document, dict) else None
    if not isinstance(entries, list) or not entries:
        raise DataError(
            f"{annotations}: not the Karpathy layout: an object with a list `images` is expected, "
            f"found {_describe(document)}"
        )
    result = KarpathyAnnotations(str(document.get("dataset", annotations.stem)), {})
    keys: set[tuple[str, str]] = set()
    for number, entry in enumerate(entries):
        where = f"{annotations}: images[{number}]"
        record, split, skipped = _record(entry, number, images, where)
        records = result.splits.setdefault(split, [])
        result.skipped.setdefault(split, []).extend(skipped)
        if record is None:
            continue
        if (split, record.key) in keys:
            raise DataError(f"{where}: a second image named {record.key} in split {split}; names must be unique")
        keys.add((split, record.key))
        records.append(record)
    if not any(result.splits.values()):
        raise DataError(f"{annotations}: no image has a usable caption")
    return result


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise DataError(f"--annotations {path}: no such file") from None
    except IsADirectoryError:
        raise DataError(f"--annotations {path}: is a folder; give the JSON file") from None
    except OSError as error:
        raise DataError(f"--annotations {path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 at byte {error.start:,} (0x{error.object[error.start]:02x}); convert it to UTF-8"
        ) from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not JSON at line {error.lineno}, column {error.colno}: {error.msg}") from None


def _describe(value: Any) -> str:
    if isinstance(value, dict):
        return f"an object with the keys {', '.join(map(str, list(value)[:6])) or '(none)'}"
    return f"a {type(value).__name__}"


def _record(entry: Any, number: int, images: Path, where: str) -> tuple[Record | None, str, list[Skipped]]:
    if not isinstance(entry, dict):
        raise DataError(f"{where}: not the Karpathy layout: an object is expected, found {_describe(entry)}")
    filename, folder, sentences = entry.get("filename"), entry.get("filepath", ""), entry.get("sentences")
    if not isinstance(filename, str) or not filename:
        raise DataError(f"{where}: not the Karpathy layout: `filename` is missing or not a text")
    if not isinstance(folder, str):
        raise DataError(f"{where} ({filename}): not the Karpathy layout: `filepath` is not a text")
    if not isinstance(sentences, list):
        raise DataError(f"{where} ({filename}): not the Karpathy layout: `sentences` is missing or not a list")
    split = SPLITS.get(str(entry.get("split")))
    if split is None:
        raise DataError(f"{where} ({filename}): split {entry.get('split')!r} is none of {', '.join(SPLITS)}")
    image_id = entry.get("cocoid", entry.get("imgid", number))
    if not isinstance(image_id, int):
        raise DataError(f"{where} ({filename}): the image id {image_id!r} is not an integer")
    captions, skipped = _captions(sentences, filename, where)
    if not captions or not _is_unicode(filename):
        reason = "the file name is not valid UTF-8" if captions else "the image has no usable caption"
        return None, split, [*skipped, Skipped(filename, reason)]
    load = partial(Path.read_bytes, images / folder / filename)
    return Record(_key(filename), image_id, tuple(captions), load), split, skipped


def _captions(sentences: list[Any], filename: str, where: str) -> tuple[list[str], list[Skipped]]:
    captions, skipped = [], []
    for place, sentence in enumerate(sentences):
        raw = sentence.get("raw") if isinstance(sentence, dict) else None
        if not isinstance(raw, str):
            raise DataError(f"{where} ({filename}): not the Karpathy layout: sentences[{place}] has no text `raw`")
        caption = " ".join(raw.split())
        if not caption:
            skipped.append(Skipped(f"{filename} caption {place}", "the caption is empty"))
        elif not _is_unicode(caption):
            skipped.append(Skipped(f"{filename} caption {place}", "the caption is not valid UTF-8"))
        else:
            captions.append(caption)
    return captions, skipped


def _key(filename: str) -> str:
    path = Path(filename)
    return re.sub(r"[./\s]", "_", str(path.parent / path.stem))


def _is_unicode(text: str) -> bool:
    # a JSON escape can smuggle in half of a surrogate pair, which no UTF-8 file can hold
    return not any("\ud800" <= character <= "\udfff" for character in text)
