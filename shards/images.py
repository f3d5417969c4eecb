"""Encoded bytes -> uint8 pixels: decoding, and crop and resize in one pass."""

import io
import math
import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, UnidentifiedImageError

from shards.decoding import DecodeError, decoding
from shards.keyed_random import uniforms

Pixels = npt.NDArray[np.uint8]
Box = tuple[float, float, float, float]
"""Left, top, right, bottom: in pixels of the whole picture, or as shares of it."""
BoxOf = Callable[[int, int], Box]
"""Width and height of a picture -> the box in pixels that is wanted of it."""
Transform = Callable[[bytes, np.uint64], Pixels]
"""An encoded image and the random key of this visit -> (side, side, 3) uint8. Raises `DecodeError`."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
"""What is opened. Pillow knows more: one of them starts Ghostscript, others hold pictures of any size unseen."""

MAX_PIXELS = 64_000_000
"""Larger images are refused before they are decoded: a decompression bomb."""


def open_image(data: bytes) -> Image.Image:
    """Open encoded bytes. Raises `DecodeError`.

    The pixels are not decoded yet: whoever does that is to do it within `decoding`.
    """
    with decoding():
        try:
            with warnings.catch_warnings():  # Pillow warns from a size on that is refused here in any case
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                image = Image.open(io.BytesIO(data), formats=FORMATS)
        except UnidentifiedImageError:  # its own text holds a memory address, another one in every run
            raise DecodeError("not an image, or of an unknown format") from None
        except Image.DecompressionBombError:
            raise DecodeError(f"more than {MAX_PIXELS:,} pixels") from None
    _check_size(image.width, image.height)
    return image


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise DecodeError(f"{width} x {height} pixels, more than {MAX_PIXELS:,}")


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB, whatever the mode."""
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip to white
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    return image if image.mode == "RGB" else image.convert("RGB")


def _decode(data: bytes, side: int, box_of: BoxOf, margin: int) -> tuple[Pixels, Box]:
    """The whole picture as (H, W, 3), at a smaller scale where that is free, and the box in shares of it."""
    header = _jpeg_header(data)
    if header is not None:
        width, height = header
        box = box_of(width, height)
        scale = _reduction(side * margin, box)
        smallest = {} if scale == 1 else {"min_width": -(-width // scale), "min_height": -(-height // scale)}
        try:
            return simplejpeg.decode_jpeg(data, "RGB", **smallest), _shares(box, width, height)
        except ValueError:
            pass  # it refuses anything odd; whether the picture can be used is for Pillow to say
    image = open_image(data)
    width, height = image.size
    box = box_of(width, height)
    scale = _reduction(side * margin, box)
    with decoding():
        if scale > 1:
            image.draft("RGB", (max(1, width // scale), max(1, height // scale)))
        pixels = np.array(to_rgb(image))
    return pixels, _shares(box, width, height)


def _jpeg_header(data: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG that decodes straight to RGB, else None."""
    try:
        height, width, colours, _subsampling = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if colours not in ("YCbCr", "Gray"):  # inks are Pillow's to convert
        return None
    _check_size(width, height)
    return width, height


def _reduction(least: int, box: Box) -> int:
    """At which part of its size a JPEG can be decoded so that the box still has `least` pixels both ways."""
    spare = min(box[2] - box[0], box[3] - box[1]) / least
    return next((scale for scale in (8, 4, 2) if scale <= spare), 1)


def _shares(box: Box, width: int, height: int) -> Box:
    return box[0] / width, box[1] / height, box[2] / width, box[3] / height


def _span(first: float, last: float, length: int) -> slice:
    start = min(round(first * length), length - 1)
    return slice(start, max(start + 1, min(round(last * length), length)))


def _crop(side: int, data: bytes, box_of: BoxOf, margin: int) -> Pixels:
    import torch  # conversion decodes too, and has no use for it

    pixels, (left, top, right, bottom) = _decode(data, side, box_of, margin)
    height, width, _channels = pixels.shape
    box = pixels[_span(top, bottom, height), _span(left, right, width)]
    # torch resizes 8-bit pixels in their interleaved order, with Pillow's filter, three times as fast
    planes = torch.from_numpy(box).unsqueeze(0).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(planes, (side, side), mode="bicubic", antialias=True)
    return np.asarray(resized.permute(0, 2, 3, 1)[0])


def _centred_square(width: int, height: int) -> Box:
    short = min(width, height)
    left, top = (width - short) // 2, (height - short) // 2
    return left, top, left + short, top + short


def _random_box(min_scale: float, max_ratio: float, key: np.uint64, width: int, height: int) -> Box:
    area, ratio, x, y = uniforms(key, 4)
    aspect = math.exp((2 * ratio - 1) * math.log(max_ratio))
    target = (min_scale + (1 - min_scale) * area) * width * height
    across, down = min(math.sqrt(target * aspect), width), min(math.sqrt(target / aspect), height)
    left, top = x * (width - across), y * (height - down)
    return left, top, left + across, top + down


def _center_crop(side: int, data: bytes, _key: np.uint64) -> Pixels:
    return _crop(side, data, _centred_square, margin=2)  # near to what the whole picture resizes to


def _random_resized_crop(side: int, min_scale: float, max_ratio: float, data: bytes, key: np.uint64) -> Pixels:
    return _crop(side, data, partial(_random_box, min_scale, max_ratio, key), margin=1)  # fast


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
