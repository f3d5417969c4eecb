"""Encoded bytes -> uint8 pixels: decoding, and crop and resize in one pass."""

import io
import struct
import zlib
from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from shards.keyed_random import uniforms

Pixels = npt.NDArray[np.uint8]
Transform = Callable[[Image.Image, np.uint64], Pixels]
"""Image and the random key of this visit -> (side, side, 3) uint8."""

DECODE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
"""What Pillow raises on bytes that are no image, or on a broken one."""

MAX_PIXELS = 64_000_000
"""Larger images are refused before they are decoded: a decompression bomb."""


def open_image(data: bytes) -> Image.Image:
    """Open encoded bytes; the pixels are not decoded yet. Raises one of `DECODE_ERRORS`."""
    try:
        image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:  # its own text holds a memory address, another one in every run
        raise ValueError("not an image, or of an unknown format") from None
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB, whatever the mode."""
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip to white
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    return image.convert("RGB")


def _crop(image: Image.Image, side: int, box: tuple[float, float, float, float]) -> Pixels:
    # draft lets libjpeg decode at 1/2, 1/4 or 1/8 scale where that still holds enough pixels both ways
    scale = side / min(box[2] - box[0], box[3] - box[1])
    before = image.size
    image.draft("RGB", (round(before[0] * scale), round(before[1] * scale)))
    x, y = image.width / before[0], image.height / before[1]
    drafted = (box[0] * x, box[1] * y, box[2] * x, box[3] * y)
    resized = to_rgb(image).resize((side, side), Image.Resampling.BICUBIC, drafted, reducing_gap=3.0)
    return np.asarray(resized)


def _center_crop(side: int, image: Image.Image, _key: np.uint64) -> Pixels:
    short = min(image.size)
    left, top = (image.width - short) / 2, (image.height - short) / 2
    return _crop(image, side, (left, top, left + short, top + short))


def _random_resized_crop(
    side: int, min_scale: float, max_ratio: float, image: Image.Image, key: np.uint64
) -> Pixels:
    area, ratio, x, y = uniforms(key, 4)
    aspect = np.exp((2 * ratio - 1) * np.log(max_ratio))
    target = (min_scale + (1 - min_scale) * area) * image.width * image.height
    width = min(float(np.sqrt(target * aspect)), image.width)
    height = min(float(np.sqrt(target / aspect)), image.height)
    left, top = x * (image.width - width), y * (image.height - height)
    return _crop(image, side, (left, top, left + width, top + height))


# partial functions, not closures: a transform travels to spawned loader workers


def center_crop(side: int) -> Transform:
    """The largest centred square, resized to `side` pixels: for evaluation."""
    return partial(_center_crop, side)


def random_resized_crop(side: int, min_scale: float, max_ratio: float = 4 / 3) -> Transform:
    """A random box resized to `side` pixels: for training.

    It has at least `min_scale` of the area and an aspect ratio within `1 / max_ratio .. max_ratio`, as far as
    it fits into the picture.
    """
    return partial(_random_resized_crop, side, min_scale, max_ratio)
