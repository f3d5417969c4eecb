"""SCAN's precomputed region features, as its repository and its followers' hand them out.

    DIR/test_ims.npy       (N, 36, 2048): the regions of N images, or of N / 5 images, each five times in a row
    DIR/test_caps.txt      a caption a line, five an image, in the order of the images
    DIR/test_ids.txt       an image id a line, one an image or one a caption (optional)
    id_mapping.json        image id -> image file, in DIR or the folder above (optional; joins --images)

Lee et al., "Stacked cross attention for image-text matching", ECCV 2018. The split `dev` becomes `val`,
and `testall`, which is the whole test split of COCO, `test`.
"""

from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shards.decoding import DecodeError, decoding
from shards.errors import DataError
from shards.sources.images import check_images, read_image
from shards.sources.listed import Splits, listed_source
from shards.sources.record import Record, Regions, Skipped, Source
from shards.sources.text import clean_captions, describe, file_identity, is_int64, is_unicode, open_text, read_json

RENAMED = {"dev": "val", "testall": "test"}
MAPPING = "id_mapping.json"


@dataclass(frozen=True)
class _Layout:
    """How the rows of a split's arrays belong to its captions."""

    images: int
    captions_each: int
    step: int
    """Rows from one image to the next."""

    def __str__(self) -> str:
        rows = "one row each" if self.step == 1 else f"{self.step} equal rows each"
        return f"{self.images:,} images, {rows}, with {self.captions_each} captions each"


def read_scan(
    root: Path,
    images: Path | None = None,
    splits: list[str] | None = None,
    captions_each: int = 5,
    dataset: str | None = None,
) -> Source:
    """Read the splits whose `_ims.npy` lie in `root`, or those of them that `splits` names as the files do.

    With `images`, a record holds the photo too, found by `id_mapping.json`. `dataset` is the name by which
    protocols of evaluation are chosen; else the folder's. `Source.identity["layouts"]` tells how rows and captions
    were matched. Raises `DataError` when their numbers do not fit together.
    """
    if not root.is_dir():
        raise DataError(f"--root {root}: no such folder")
    there = sorted(path.name.removesuffix("_ims.npy") for path in root.glob("*_ims.npy"))
    if not there:
        raise DataError(f"--root {root}: no file named SPLIT_ims.npy in this folder")
    if missing := [name for name in splits or [] if name not in there]:
        raise DataError(f"--splits: {root} has no {missing[0]}_ims.npy; those that are there: {', '.join(there)}")
    if images is not None:
        check_images(images)
    mapping: dict[str, str] = {}
    files = []
    if images is not None:
        path = _mapping_file(root)
        mapping = _mapping(path)
        files.append(file_identity(path))
    found: Splits = {}
    layouts: dict[str, str] = {}
    for name in splits or there:
        split = RENAMED.get(name, name)
        if split in found:
            raise DataError(
                f"--root {root}: {name} would be a second split {split}; name those to take with --splits"
            )
        found[split], layout = _read_split(root, name, images, mapping, captions_each)
        layouts[split] = str(layout)
        suffixes = ("ims.npy", "caps.txt", "ids.txt")
        paths = [root / f"{name}_{suffix}" for suffix in suffixes]
        files += [file_identity(path) for path in paths if path.is_file()]
    identity: dict[str, object] = {
        "format": "scan",
        "files": files,
        "images": str(images.absolute()) if images else None,
        "layouts": layouts,
    }
    inputs = (root, *([images] if images else []))
    return listed_source(dataset or root.absolute().name, found, identity, inputs, str(root))


def _read_split(
    root: Path, name: str, images: Path | None, mapping: dict[str, str], captions_each: int
) -> tuple[list[Record | Skipped], _Layout]:
    path = root / f"{name}_ims.npy"
    array = _open(path)
    with open_text(root / f"{name}_caps.txt", f"--root {root}: {name} needs its captions,") as stream:
        texts = [line.rstrip("\r\n") for line in stream]
    if len(texts) % captions_each == 1 and not texts[-1].strip():
        texts.pop()  # an empty line at the end of the file
    layout = _layout(array, texts, path, captions_each)
    ids = _ids(root / f"{name}_ids.txt", layout)
    items: list[Record | Skipped] = []
    for number in range(layout.images):
        row = number * layout.step
        where = f"{path.name} row {row}"
        first = number * layout.captions_each
        _, captions, skipped = clean_captions(texts[first : first + layout.captions_each], where)
        items += skipped
        if not captions:
            items.append(Skipped(where, "the image has no usable caption"))
            continue
        load = None
        if images is not None:
            file = mapping.get(str(ids[number]))
            if file is None or not is_unicode(file):
                items.append(Skipped(where, f"{MAPPING} names no usable file for the image id {ids[number]}"))
                continue
            load = partial(read_image, images, file)
        key = f"{RENAMED.get(name, name)}-{number:06d}"
        items.append(Record(key, ids[number], tuple(captions), load, partial(_regions, path, row)))
    return items, layout


def _layout(array: npt.NDArray[np.generic], texts: list[str], path: Path, captions_each: int) -> _Layout:
    rows, captions = len(array), len(texts)
    if captions == captions_each * rows:
        return _Layout(rows, captions_each, 1)
    if captions == rows:
        groups = rows // captions_each
        equal = [
            bool((array[first : first + captions_each] == array[first]).all())
            for first in {0, groups // 2 * captions_each, max(groups - 1, 0) * captions_each}
        ]
        if all(equal) and rows % captions_each == 0:
            return _Layout(groups, captions_each, captions_each)
        if not any(equal) or captions_each == 1:
            return _Layout(rows, 1, 1)
    raise DataError(
        f"{path}: {rows:,} rows do not fit {captions:,} captions; expected {captions_each} captions a row, or one "
        f"caption a row with each image in {captions_each} equal rows (see --captions-each)"
    )


def _ids(path: Path, layout: _Layout) -> list[int]:
    """The image ids; without a file, the images' numbers."""
    if not path.is_file():
        return list(range(layout.images))
    with open_text(path, "--root") as stream:
        lines = [line.strip() for line in stream if line.strip()]
    if len(lines) == layout.images * layout.captions_each:
        lines = lines[:: layout.captions_each]
    if len(lines) != layout.images:
        raise DataError(f"{path}: {len(lines):,} ids for {layout.images:,} images")
    ids = []
    for number, line in enumerate(lines):
        value = int(line) if line.removeprefix("-").isdecimal() else None
        if value is None or not is_int64(value):
            raise DataError(f"{path}: id {number}, {line!r}, is not an integer of 64 bits")
        ids.append(value)
    return ids


def _mapping_file(root: Path) -> Path:
    path = next((one for one in (root / MAPPING, root.parent / MAPPING) if one.is_file()), None)
    if path is None:
        raise DataError(f"--images: {MAPPING}, which names the image files, is neither in {root} nor above it")
    return path


def _mapping(path: Path) -> dict[str, str]:
    """Image id, as a text, -> image file; from an object, or from a list by place."""
    document = read_json(path)
    pairs = dict(enumerate(document)) if isinstance(document, list) else document
    if not isinstance(pairs, dict) or not all(isinstance(name, str) for name in pairs.values()):
        raise DataError(f"{path}: an object of image ids and file names is expected, found {describe(document)}")
    return {str(image_id): name for image_id, name in pairs.items()}


def _open(path: Path) -> npt.NDArray[np.generic]:
    try:
        with decoding():
            array = np.lib.format.open_memmap(path, mode="r")
    except DecodeError as error:
        raise DataError(f"{path}: cannot be read as an array ({error})") from None
    if array.ndim not in (2, 3) or array.dtype.kind != "f" or not array.size:
        raise DataError(
            f"{path}: floating-point numbers of shape (N, regions, features) are expected, found "
            f"{array.dtype} {array.shape}"
        )
    return array


_mapped = lru_cache(maxsize=4)(_open)


def _regions(path: Path, row: int) -> Regions:
    """(R, F) float32; a row of an (N, F) array is one region. Raises `ValueError` for NaN and infinities.

    Raises `DataError` when the file is gone since.
    """
    values = np.asarray(_mapped(path)[row], np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"row {row} of {path.name} holds NaN or infinity")
    return np.atleast_2d(values)
