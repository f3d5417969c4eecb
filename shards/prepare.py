"""A record -> a sample that can be written: its image read, decoded once, and made smaller where asked."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from shards.images import DECODE_ERRORS, open_image
from shards.sources.record import Record, Skipped
from shards.tarwriter import Sample

EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tiff"}
"""Pillow's format -> the member's extension; anything else that Pillow decodes is named `img`."""


@dataclass(frozen=True)
class Resize:
    """How images are made smaller; those that are small already keep their bytes."""

    side: int | None = None
    """Pixels of the shorter side at most; None resizes nothing."""
    quality: int = 90
    """Of JPEG and WebP that are written anew, 1 to 100."""
    format: str | None = None
    """`JPEG`, `PNG` or `WEBP`, to which every image of another format is converted; None keeps its own."""


def load_sample(record: Record, resize: Resize) -> Sample | Skipped:
    """Read the record's parts and decode its image whole: what will not decode in training is found here."""
    regions = None
    if record.regions is not None:
        try:
            regions = np.ascontiguousarray(record.regions())
        except (OSError, ValueError) as error:
            return Skipped(record.key, f"the regions cannot be read ({error})")
    if record.load is None:
        assert regions is not None, "a record has an image, regions or both"
        return Sample(record, None, "", 0, 0, regions)
    try:
        data = record.load()
    except FileNotFoundError:
        return Skipped(record.key, "the image file is missing")
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        return Skipped(record.key, f"the image file cannot be read ({error})")
    try:
        with open_image(data) as image:
            image.load()
            form, size = image.format or "", image.size
            smaller = _size(size, resize.side)
            wanted = resize.format or form
            if smaller != size or EXTENSIONS.get(wanted) != EXTENSIONS.get(form):
                data, form, size = _encode(image, smaller, wanted, resize.quality), wanted, smaller
    except DECODE_ERRORS as error:
        return Skipped(record.key, f"the image does not decode ({error})")
    return Sample(record, data, EXTENSIONS.get(form, "img"), *size, regions)


def _size(size: tuple[int, int], side: int | None) -> tuple[int, int]:
    short = min(size)
    if side is None or short <= side:
        return size
    return round(size[0] * side / short), round(size[1] * side / short)


def _encode(image: Image.Image, size: tuple[int, int], form: str, quality: int) -> bytes:
    # what the file said of its orientation and colours still holds of the smaller one
    kept = {name: image.info[name] for name in ("exif", "icc_profile") if image.info.get(name)}
    if image.mode == "P":  # a palette cannot be interpolated
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    if form == "JPEG" and image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("RGB")
    if size != image.size:
        image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    stream = io.BytesIO()
    image.save(stream, "JPEG" if form == "MPO" else form or "PNG", quality=quality, **kept)
    return stream.getvalue()
