"""A record -> a sample that can be written: its image read, decoded once, and made smaller where asked."""

import errno
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from shards.decoding import DecodeError, decoding
from shards.errors import DataError
from shards.images import open_image
from shards.sources.record import Record, Regions, Skipped
from shards.tarwriter import Sample

EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tiff"}
"""Pillow's format -> the member's extension; anything else that is decoded is named `img`."""
MODES = {
    "JPEG": ("L", "RGB", "CMYK"),
    "PNG": ("L", "LA", "RGB", "RGBA", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("L", "RGB", "RGBA"),
    "BMP": ("L", "RGB"),
    "TIFF": ("L", "LA", "RGB", "RGBA", "CMYK", "I;16", "I", "F"),
}
"""Formats that are written, with the pixels that they can hold; what has another format becomes a PNG."""
_ENVIRONMENT = {errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
"""Errors of the machine or the disk, not of one file."""


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
    """Read the record's parts and decode its image whole: what will not decode in training is found here.

    Raises `DataError` when the machine cannot read at all: the files that it would skip are not to blame.
    """
    assert record.load or record.regions, "a record has an image, regions or both"
    regions = None
    try:
        if record.regions is not None:
            regions = _as_regions(record.regions())
    except (OSError, ValueError) as error:
        return _unreadable(record.key, "regions", error)
    if record.load is None:
        return Sample(record, None, "", 0, 0, regions)
    try:
        data = record.load()
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        return _unreadable(record.key, "image file", error)
    try:
        with decoding(), open_image(data) as image:
            form, size = image.format or "", _size(image.size, resize.side)
            smaller = size != image.size
            if smaller:
                image.draft(None, (2 * size[0], 2 * size[1]))  # a JPEG can be decoded at half or less, cheaply
            image.load()
            if form == "TIFF":  # loading turned it as its orientation says
                size = _size(image.size, resize.side)
    except DecodeError as error:
        return Skipped(record.key, f"the image does not decode ({error})")
    wanted = resize.format or {"MPO": "JPEG"}.get(form, form)
    if smaller or EXTENSIONS.get(wanted) != EXTENSIONS.get(form):
        form = wanted if wanted in MODES else "PNG"  # Pillow reads more than it writes
        try:
            data = _encode(image, size, form, resize.quality)
        except (OSError, ValueError) as error:
            return Skipped(record.key, f"the image cannot be written as {form} ({error})")
    return Sample(record, data, EXTENSIONS.get(form, "img"), *size, regions)


def _as_regions(array: Regions) -> Regions:
    regions = np.ascontiguousarray(array, np.float32)
    if regions.ndim != 2 or not regions.size:
        raise ValueError(f"an array of shape {regions.shape}, not of regions x features")
    if not np.isfinite(regions).all():
        raise ValueError("a value is not finite")
    return regions


def _unreadable(key: str, what: str, error: OSError | ValueError) -> Skipped:
    if isinstance(error, OSError) and error.errno in _ENVIRONMENT:
        raise DataError(f"{key}: the {what} cannot be read ({error}); finished shards are kept") from None
    verb = "is" if what.endswith("file") else "are"
    reason = f"{verb} missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
    return Skipped(key, f"the {what} {reason}")


def _size(size: tuple[int, int], side: int | None) -> tuple[int, int]:
    short = min(size)
    if side is None or short <= side:
        return size
    return round(size[0] * side / short), round(size[1] * side / short)


def _encode(image: Image.Image, size: tuple[int, int], form: str, quality: int) -> bytes:
    # what the file said of its orientation and colours still holds of the smaller one
    pixels = _in_mode(image, form)
    kept = {}
    if exif := image.info.get("exif"):
        kept["exif"] = exif if exif.startswith(b"Exif") else b"Exif\0\0" + exif  # WebP lacks what JPEG wants
    if (profile := image.info.get("icc_profile")) and _channels(image.mode) == _channels(pixels.mode):
        kept["icc_profile"] = profile
    resized = pixels.resize(size, Image.Resampling.LANCZOS)
    resized.info = {}  # of the old file: its palette's transparent colour, for one
    stream = io.BytesIO()
    resized.save(stream, form, quality=quality, **kept)
    return stream.getvalue()


def _channels(mode: str) -> str:
    """What a colour profile describes: grey, RGB, CMYK or others."""
    return {"1": "L", "P": "RGB", "PA": "RGB"}.get(mode, mode.rstrip("aA"))


def _in_mode(image: Image.Image, form: str) -> Image.Image:
    """The pixels in a mode that can be interpolated and that `form` can hold."""
    mode = {"1": "L", "P": "RGBA" if "transparency" in image.info else "RGB", "PA": "RGBA"}.get(
        image.mode, image.mode
    )
    if mode not in MODES[form] and mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip to white
        image, mode = image.convert("I").point(lambda value: value * (1 / 256)).convert("L"), "L"
    if mode not in MODES[form]:
        mode = "RGBA" if mode.upper().endswith("A") and "RGBA" in MODES[form] else "RGB"
    return image.convert(mode)
