"""The token files of Flickr30K and Flickr8K, `results_20130124.token` and `Flickr8k.token.txt`.

    1000092795.jpg#0<TAB>Two young guys with shaggy hair look at their hands .

The splits come from lists of image names (with or without `.jpg`), from a Karpathy file, or all images are one.
An image's id is its number in the Karpathy file, else its place in the token file.
"""

import re
from functools import partial
from pathlib import Path

from shards.errors import DataError
from shards.sources.images import check_images, read_image
from shards.sources.karpathy import read_assignment
from shards.sources.listed import Splits, listed_source
from shards.sources.record import Record, Skipped, Source
from shards.sources.text import (
    check_split_name,
    clean_captions,
    file_identity,
    is_unicode,
    key_of_name,
    open_text,
)

LISTS = "--train-list, --val-list, --test-list"
_LINE = re.compile(r"(.+)#(\d+)\t(.*)")
_Captions = dict[str, list[tuple[int, str]]]
"""An image's name -> (number, caption)."""
_Assignment = dict[str, tuple[str, int]]
"""An image's name -> its split and image id."""


def read_flickr30k(
    token: Path,
    images: Path,
    *,
    split: str = "train",
    lists: dict[str, Path] | None = None,
    karpathy: Path | None = None,
) -> Source:
    """Read a token file; `lists` gives a file of image names a split.

    Lines of another layout, images that no list names and names without captions are listed as skipped. Raises
    `DataError` for a file of which no line fits, and for an image in two lists.
    """
    check_images(images)
    check_split_name(split, "--split")
    if lists and karpathy:
        raise DataError(f"--karpathy: give it or {LISTS}, not both")
    found, skipped = _read_token(token)
    if karpathy:
        assigned, source = read_assignment(karpathy, "filename"), str(karpathy)
    elif lists:
        assigned, source = _read_lists(lists, found), "the lists"
    else:
        assigned, source = {name: (split, place) for place, name in enumerate(found)}, str(token)
    splits: Splits = {}
    for name, (where, image_id) in assigned.items():
        items = splits.setdefault(where, [])
        if name in found:
            items.extend(_items(name, image_id, found[name], images))
        else:
            items.append(Skipped(name, f"named in {source}, but {token} has no caption of it"))
    if not splits:
        raise DataError(f"{source}: no image is named there")
    unnamed = (Skipped(name, f"not named in {source}") for name in found if name not in assigned)
    next(iter(splits.values())).extend([*unnamed, *skipped])
    identity: dict[str, object] = {
        "format": "flickr30k",
        "token": file_identity(token),
        "images": str(images.absolute()),
        "split": split,
        "lists": {name: file_identity(path) for name, path in (lists or {}).items()},
        "karpathy": file_identity(karpathy) if karpathy else None,
    }
    dataset = "flickr8k" if "8k" in token.name.lower() else "flickr30k"
    inputs = (token, images, *(lists or {}).values(), *([karpathy] if karpathy else []))
    return listed_source(dataset, splits, identity, inputs, str(token))


def _read_token(path: Path) -> tuple[_Captions, list[Skipped]]:
    captions: _Captions = {}
    skipped = []
    with open_text(path, "--token") as stream:
        for number, line in enumerate(stream, 1):
            match = _LINE.fullmatch(line.rstrip("\r\n"))
            if match:
                captions.setdefault(match[1], []).append((int(match[2]), match[3]))
            elif line.strip():
                skipped.append(Skipped(f"{path}: line {number}", "not of the form NAME.jpg#NUMBER<tab>CAPTION"))
    if not captions:
        raise DataError(f"{path}: no line is of the form NAME.jpg#NUMBER<tab>CAPTION; is it the token file?")
    return captions, skipped


def _read_lists(lists: dict[str, Path], found: _Captions) -> _Assignment:
    names = {Path(name).stem: name for name in found}
    place = {name: number for number, name in enumerate(found)}
    assigned: _Assignment = {}
    for split, path in lists.items():
        with open_text(path, f"--{split}-list") as stream:
            for line in filter(None, map(str.strip, stream)):
                name = line if line in found else names.get(line, line)
                if name in assigned:
                    raise DataError(f"{path}: {name} stands in the list of {assigned[name][0]} already")
                assigned[name] = split, place.get(name, 0)
    return assigned


def _items(name: str, image_id: int, pairs: list[tuple[int, str]], images: Path) -> list[Record | Skipped]:
    _, captions, skipped = clean_captions([text for _, text in sorted(pairs)], name)
    if not captions or not is_unicode(name):
        reason = "the file name is not valid UTF-8" if captions else "the image has no usable caption"
        return [*skipped, Skipped(name, reason)]
    load = partial(read_image, images, name)
    return [*skipped, Record(key_of_name(name), image_id, tuple(captions), load)]
