"""A folder of images, at any depth, with a file of captions beside each.

    0001.jpg  0001.txt     one caption a line
    0002.png  0002.json    {"caption": "..."} or {"captions": ["...", "..."]}, and "image_id" if there is one

Where an image has both, the `.txt` counts and the `.json` is not read (it often holds a crawl's notes). Hidden
files and files of other kinds are passed over.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from shards.errors import DataError
from shards.members import IMAGE_EXTENSIONS
from shards.repeats import Repeats
from shards.seen import hash64
from shards.sources.images import read_image
from shards.sources.record import Record, Skipped, Source, Split
from shards.sources.stream import Stream
from shards.sources.text import (
    check_split_name,
    clean_captions,
    describe,
    is_int64,
    is_unicode,
    key_of_name,
    read_json,
)


def read_folder(root: Path, splits: list[str] | None = None, split: str = "train") -> Source:
    """Read a folder as one split, or its sub-folders `splits` as one each.

    The names are listed once here, for their count and a digest of them and of the caption files' sizes and times,
    which an interrupted conversion is compared by; captions are read as the records are made. Images without
    captions, captions without image and a second image of a name (`a.jpg`, `a.png`) are listed as skipped. Raises
    `DataError` for a missing folder, and when the names of two images give one key.
    """
    if not root.is_dir():
        raise DataError(f"--root {root}: no such folder")
    for name in splits or [split]:
        check_split_name(name, "--splits" if splits else "--split")
        if splits and not (root / name).is_dir():
            there = ", ".join(sorted(path.name for path in root.iterdir() if path.is_dir())) or "none"
            raise DataError(f"--splits: {root} has no sub-folder {name}; those that are there: {there}")
    folders = {name: root / name if splits else root for name in splits or [split]}
    found = []
    digests = {}
    for name, folder in folders.items():
        survey = _survey(folder)
        digests[name] = survey.digest
        found.append(Split(name, Stream(partial(_items, folder)), survey.images))
    if not any(one.count for one in found):
        raise DataError(
            f"{root}: no image has a file of captions beside it; expected 0001.jpg with 0001.txt or .json"
        )
    identity: dict[str, object] = {"format": "folder", "root": str(root.absolute()), "names": digests}
    return Source(root.absolute().name, found, identity, tuple(folders.values()))


@dataclass
class _Stem:
    """Files of one folder that are named alike but for their extension."""

    images: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Survey:
    images: int
    digest: str


def _walk(
    root: Path, below: str = "", above: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[tuple[str, _Stem]]:
    """Every stem, relative to `root`, in sorted order: the files of a folder, then its sub-folders."""
    state = (root / below).stat()
    if (state.st_dev, state.st_ino) in above:  # a link to a folder above would never end
        return
    above |= {(state.st_dev, state.st_ino)}
    stems: dict[str, _Stem] = {}
    folders: list[str] = []
    with os.scandir(root / below) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                folders.append(entry.name)
                continue
            stem, extension = os.path.splitext(entry.name)  # noqa: PTH122 - a million of them: no Path each
            extension = extension[1:].lower()
            if extension in IMAGE_EXTENSIONS:
                stems.setdefault(stem, _Stem()).images.append(entry.name)
            elif extension in ("txt", "json"):
                stems.setdefault(stem, _Stem()).captions.append(entry.name)
    prefix = f"{below}/" if below else ""
    for stem in sorted(stems):
        files = stems[stem]
        files.images.sort()
        files.captions.sort(key=lambda name: not name.lower().endswith(".txt"))
        yield prefix + stem, files
    for name in sorted(folders):
        yield from _walk(root, prefix + name, above)


def _survey(root: Path) -> _Survey:
    digest = hashlib.sha256()
    keys = Repeats()
    for stem, files in _walk(root):
        digest.update(f"{stem}\0{files}\0".encode(errors="surrogateescape"))
        if files.images and files.captions:
            # a caption file that was mended since makes a record of what was skipped, and moves all that follow
            digest.update(repr(_state(root / os.path.dirname(stem) / files.captions[0])).encode())  # noqa: PTH120
            keys.add(key_of_name(f"{stem}.x"))
    if twice := keys.found():
        names = [
            stem
            for stem, files in _walk(root)
            if files.images and files.captions and hash64(key_of_name(f"{stem}.x")) in twice
        ]
        first = key_of_name(f"{names[0]}.x")
        same = [name for name in names if key_of_name(f"{name}.x") == first]
        raise DataError(f"{root}: {' and '.join(same[:2])} both give the key {first}; rename one")
    return _Survey(len(keys), digest.hexdigest())


def _state(path: Path) -> tuple[int, int] | None:
    try:
        state = path.stat()
    except OSError:  # such as a link to nowhere: told when it is read
        return None
    return state.st_size, state.st_mtime_ns


def _items(root: Path) -> Iterator[Record | Skipped]:
    for stem, files in _walk(root):
        folder = os.path.dirname(stem)  # noqa: PTH120
        if not files.images:
            yield from (Skipped(os.path.join(folder, name), "captions without an image") for name in files.captions)  # noqa: PTH118
            continue
        yield from (
            Skipped(os.path.join(folder, name), f"{files.images[0]} has the same name")  # noqa: PTH118
            for name in files.images[1:]
        )
        yield from _pair(root, folder, stem, files)


def _pair(root: Path, folder: str, stem: str, files: _Stem) -> Iterator[Record | Skipped]:
    name = f"{folder}/{files.images[0]}" if folder else files.images[0]
    if not is_unicode(name):
        yield Skipped(name, "the file name is not valid UTF-8")
        return
    if not files.captions:
        yield Skipped(name, "no file of captions beside it")
        return
    try:
        image_id, texts = _read_captions(root / folder / files.captions[0])
    except (OSError, DataError) as error:
        yield Skipped(name, str(error))
        return
    _, captions, skipped = clean_captions(texts, name)
    yield from skipped
    if captions:
        load = partial(read_image, root, name)
        yield Record(key_of_name(f"{stem}.x"), image_id, tuple(captions), load)
    else:
        yield Skipped(name, "the image has no usable caption")


def _read_captions(path: Path) -> tuple[int | None, list[str]]:
    """The image id, if the file tells one, and the captions. Raises `DataError` for another layout."""
    if path.suffix.lower() == ".txt":
        lines = path.read_text(encoding="utf-8-sig", errors="surrogateescape").split("\n")
        return None, [line for line in lines if line.strip()]
    document = read_json(path)
    fields = document if isinstance(document, dict) else {}
    captions = fields.get("captions", [fields["caption"]] if "caption" in fields else None)
    if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
        raise DataError(f"{path.name}: no text `caption` or list `captions`, found {describe(document)}")
    image_id = fields.get("image_id")
    if image_id is not None and not is_int64(image_id):
        raise DataError(f"{path.name}: the image id {image_id!r} is not an integer of 64 bits")
    return image_id, captions
