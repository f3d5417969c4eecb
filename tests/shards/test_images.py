import io
import pickle
import re
import struct
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shards.decoding import DecodeError, decoding
from shards.images import MAX_PIXELS, Box, Pixels, _crop, center_crop, open_image, random_resized_crop
from shards.keyed_random import key_of

ANY_KEY = key_of(0)


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def coordinates(width: int, height: int) -> Image.Image:
    """Red rises from left to right, green from top to bottom, each over 0 .. 255 from edge to edge."""
    across = np.broadcast_to((np.arange(width) + 0.5) / width * 255, (height, width))
    down = np.broadcast_to(((np.arange(height) + 0.5) / height * 255)[:, None], (height, width))
    return Image.fromarray(np.stack([across, down, np.zeros_like(across)], 2).round().astype(np.uint8))


def box_of(pixels: Pixels) -> np.ndarray:
    """The box that a crop of `coordinates` shows, as shares of the picture: left, top, right, bottom."""
    side = len(pixels)
    centres = (np.arange(side) + 0.5) / side
    inner = slice(side // 8, side - side // 8)  # resizing flattens a gradient near the edges of a picture

    def ends(values: np.ndarray) -> tuple[float, float]:
        slope, offset = np.polyfit(centres[inner], values[inner] / 255, 1)
        return float(offset), float(offset + slope)

    left, right = ends(pixels[..., 0].mean(0))
    top, bottom = ends(pixels[..., 1].mean(1))
    return np.array([left, top, right, bottom])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (50, 40), (900, 2), (2, 900)])
@pytest.mark.parametrize("transform", [center_crop(16), random_resized_crop(16, 0.4)])
def test_any_image_becomes_a_square_of_rgb_bytes(transform, mode: str, size: tuple[int, int]) -> None:
    data = encoded(coordinates(*size).convert(mode), "TIFF" if mode == "CMYK" else "PNG")
    pixels = transform(data, ANY_KEY)
    assert pixels.shape == (16, 16, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous, "other layouts are slow to put into a batch"


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "CMYK"])
def test_the_colour_survives_the_mode(mode: str) -> None:
    colour = (120, 120, 120) if mode == "L" else (200, 100, 50)
    image = Image.new("RGB", (40, 30), colour)
    image = image.quantize() if mode == "P" else image.convert(mode)  # quantize: a palette without dithering
    pixels = center_crop(8)(encoded(image, "TIFF" if mode == "CMYK" else "PNG"), ANY_KEY)
    assert np.abs(pixels.astype(int) - colour).max() <= 2


def test_sixteen_bit_greys_keep_their_brightness() -> None:
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    pixels = center_crop(64)(encoded(Image.fromarray(ramp)), key_of(0))
    assert np.abs(pixels[..., 0].astype(int) - ramp // 256).max() <= 2


def test_a_jpeg_of_cmyk_inks_is_read_as_colours() -> None:
    image = Image.new("RGB", (64, 64), (200, 100, 50)).convert("CMYK")
    pixels = center_crop(8)(encoded(image, "JPEG", quality=95), ANY_KEY)
    assert np.abs(pixels.astype(int) - (200, 100, 50)).max() <= 8


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("size", [(300, 300), (1600, 1000), (1000, 1600), (1601, 1203)])
def test_center_crop_shows_the_largest_centred_square(size: tuple[int, int], form: str) -> None:
    width, height = size
    pixels = center_crop(64)(encoded(coordinates(*size), form, quality=95), ANY_KEY)
    short = min(size)
    left, top = (1 - short / width) / 2, (1 - short / height) / 2
    assert box_of(pixels) == pytest.approx([left, top, 1 - left, 1 - top], abs=0.012)


@pytest.mark.parametrize("transform", [center_crop(64), random_resized_crop(64, 0.5)])
def test_a_large_jpeg_shows_the_same_as_a_png(transform) -> None:
    picture = coordinates(1601, 1203)
    jpeg, png = encoded(picture, "JPEG", quality=95), encoded(picture, "PNG")
    for number in range(8):
        pixels, expected = transform(jpeg, key_of(number)), transform(png, key_of(number))
        assert np.abs(pixels.astype(int) - expected).max() <= 6


@pytest.mark.parametrize("form", ["YCbCr", "CMYK"])
def test_a_large_jpeg_is_decoded_at_a_smaller_scale(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By either decoder: simplejpeg for the first, Pillow for the second; with twice the pixels that are wanted."""
    sizes = []
    real = torch.nn.functional.interpolate
    monkeypatch.setattr(
        torch.nn.functional, "interpolate", lambda x, *a, **k: sizes.append(tuple(x.shape[2:])) or real(x, *a, **k)
    )
    for side, short in ((32, 151), (100, 301), (150, 301), (151, 602), (300, 602), (400, 1203)):
        center_crop(side)(encoded(coordinates(1601, 1203).convert(form), "JPEG"), ANY_KEY)
        assert sizes.pop() == pytest.approx((short, short), abs=1)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_long_thin_jpeg_keeps_its_detail(axis: int) -> None:
    """The box is much longer one way than the other; the decoder must not scale the short way below `side`."""
    stripes = np.broadcast_to(np.arange(200)[:, None, None] // 4 % 2 * 255, (200, 6000, 3)).astype(np.uint8)
    picture = Image.fromarray(stripes if axis == 0 else stripes.transpose(1, 0, 2))
    crop = random_resized_crop(128, 1.0)
    pixels = crop(encoded(picture, "JPEG", quality=95), ANY_KEY)
    expected = crop(encoded(picture, "PNG"), ANY_KEY)
    assert expected.std() > 60
    assert np.abs(pixels.astype(int) - expected).mean() < 8


def test_a_jpeg_one_pixel_high_can_be_cropped() -> None:
    data = encoded(Image.new("RGB", (65_000, 1), (9, 9, 9)), "JPEG")
    assert random_resized_crop(8, 1.0)(data, ANY_KEY).shape == (8, 8, 3)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 2**32), st.floats(0.05, 1))
def test_a_random_crop_works_for_any_size(width: int, height: int, number: int, min_scale: float) -> None:
    image = Image.new("RGB", (width, height), (30, 60, 90))
    pixels = random_resized_crop(12, min_scale)(encoded(image), key_of(number))
    assert (pixels == (30, 60, 90)).all(), "a colour from outside the picture"


def random_boxes(min_scale: float, size: tuple[int, int], count: int = 200) -> np.ndarray:
    data, crop = encoded(coordinates(*size), compress_level=0), random_resized_crop(64, min_scale)
    return np.stack([box_of(crop(data, key_of(number))) for number in range(count)])


@pytest.mark.parametrize("size", [(400, 400), (600, 450)])
def test_random_boxes_stay_inside_and_keep_to_scale_and_ratio(size: tuple[int, int]) -> None:
    boxes = random_boxes(0.3, size)
    assert boxes.min() > -0.015
    assert boxes.max() < 1.015
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    # a box that would not fit is cut at the picture's edge, which takes from its area and its ratio
    free = (width < 0.98) & (height < 0.98)
    area, ratio = (width * height)[free], (width * size[0] / (height * size[1]))[free]
    assert free.sum() > 100
    assert area.min() > 0.3 - 0.02
    assert ratio.min() > 3 / 4 - 0.04
    assert ratio.max() < 4 / 3 + 0.04


def test_random_boxes_use_the_whole_range() -> None:
    boxes = random_boxes(0.3, (400, 400))
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert (width * height).min() < 0.36
    assert (width * height).max() > 0.9
    assert (width / height).min() < 0.8
    assert (width / height).max() > 1.25
    for low, high in ((0, 2), (1, 3)):
        assert boxes[:, low].min() < 0.02
        assert boxes[:, high].max() > 0.98


def test_random_boxes_take_their_two_places_independently() -> None:
    left, top, right, bottom = random_boxes(0.3, (400, 400)).T
    free = (right - left < 0.9) & (bottom - top < 0.9)
    across, down = (left / (1 - right + left))[free], (top / (1 - bottom + top))[free]
    assert abs(np.corrcoef(across, down)[0, 1]) < 0.3


def test_a_crop_is_a_pure_function_of_its_key() -> None:
    data, crop = encoded(coordinates(200, 150)), random_resized_crop(32, 0.3)
    assert (crop(data, key_of(4)) == crop(data, key_of(4))).all()
    assert (crop(data, key_of(4)) != crop(data, key_of(5))).any()
    whole = center_crop(32)
    assert (whole(data, key_of(4)) == whole(data, key_of(5))).all()


def test_transforms_travel_to_other_processes() -> None:
    data, crop = encoded(coordinates(200, 150)), random_resized_crop(32, 0.3)
    assert (pickle.loads(pickle.dumps(crop))(data, ANY_KEY) == crop(data, ANY_KEY)).all()


def pillow_center_crop(data: bytes, side: int) -> Pixels:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    short = min(image.size)
    left, top = (image.width - short) // 2, (image.height - short) // 2
    box = (left, top, left + short, top + short)
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC, box))


@pytest.mark.parametrize("side", [56, 112, 200])  # 56 is decoded at half the size
def test_real_photos_look_as_pillow_resizes_them(test_data: Path, side: int) -> None:
    photos = sorted((test_data / "photos" / "images").iterdir())[::40]
    differences = [
        np.abs(center_crop(side)(data, ANY_KEY).astype(int) - pillow_center_crop(data, side)).mean()
        for data in (photo.read_bytes() for photo in photos)
    ]
    assert np.mean(differences) < (2 if side == 56 else 0.1)


def test_the_resizing_is_pillows_bicubic_filter() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    data = encoded(Image.fromarray(noise))
    for side in (100, 224, 300, 400):
        difference = center_crop(side)(data, ANY_KEY).astype(int) - pillow_center_crop(data, side)
        assert np.abs(difference).mean() < 0.5
        assert np.abs(difference.mean()) < 0.1, "no brighter and no darker"


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1}, {"keep_rgb": True}]
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_any_jpeg_gives_the_pixels_that_pillow_gives(mode: str, options: dict[str, object]) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (61, 61, 3), np.uint8)
    data = encoded(Image.fromarray(noise).convert(mode), "JPEG", quality=90, **options)
    assert (center_crop(61)(data, ANY_KEY) == np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))).all()


@pytest.mark.parametrize("data", [b"", b"this is no image", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_bytes_that_are_no_image_raise_a_decode_error(data: bytes) -> None:
    with pytest.raises(DecodeError), decoding():
        open_image(data).load()
    with pytest.raises(DecodeError) as raised:
        center_crop(8)(data, ANY_KEY)
    assert not re.search("0x[0-9a-f]{6}", str(raised.value)), "a memory address differs from run to run"


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF"])
def test_a_truncated_image_raises_a_decode_error(form: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encoded(Image.fromarray(noise), form)
    data = data[: -2 if form == "JPEG" else len(data) // 2]  # of JPEG, even the marker of the end is missed
    with pytest.raises(DecodeError), decoding():
        open_image(data).load()
    with pytest.raises(DecodeError):
        center_crop(8)(data, ANY_KEY)


def damaged_avif() -> bytes:
    """Pillow raises RuntimeError."""
    data = encoded(coordinates(64, 64), "AVIF")
    start = data.index(b"mdat") + 4
    return data[:start] + bytes(len(data) - start)


def damaged_tiff() -> bytes:
    """A resolution where the width of a strip is expected; Pillow raises TypeError."""
    data = bytearray(encoded(coordinates(64, 64), "TIFF"))
    data[72] = 5
    return bytes(data)


@pytest.mark.parametrize(("make", "raised"), [(damaged_avif, RuntimeError), (damaged_tiff, TypeError)])
def test_whatever_a_decoder_raises_is_a_decode_error(make: Callable[[], bytes], raised: type[Exception]) -> None:
    data = make()
    with pytest.raises(raised):
        Image.open(io.BytesIO(data)).convert("RGB")
    for transform in (center_crop(8), random_resized_crop(8, 0.5)):
        with pytest.raises(DecodeError):
            transform(data, ANY_KEY)


def test_a_mistake_of_ours_is_no_decode_error() -> None:
    def box_of(_width: int, _height: int) -> Box:
        raise TypeError("a mistake")

    for form in ("JPEG", "PNG"):
        with pytest.raises(TypeError, match="a mistake"):
            _crop(8, encoded(coordinates(9, 9), form), box_of, 1)


@pytest.mark.parametrize("form", ["ICO", "EPS", "TGA", "DDS", "PCX"])
def test_formats_that_are_not_listed_are_not_opened(form: str) -> None:
    """EPS would be handed to Ghostscript; an ICO hides the size of the PNG within."""
    data = encoded(coordinates(32, 32), form)
    with pytest.raises(DecodeError, match="unknown format"):
        open_image(data)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM"])
def test_formats_that_are_listed_are_decoded(form: str) -> None:
    assert center_crop(8)(encoded(coordinates(32, 24), form), ANY_KEY).shape == (8, 8, 3)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_jpeg_is_refused_in_training_just_when_conversion_refuses_it(data: st.DataObject) -> None:
    noise = np.random.default_rng(2).integers(0, 256, (40, 56, 3), np.uint8)
    damaged = bytearray(encoded(Image.fromarray(noise), "JPEG", quality=80))
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(2, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    usable = True
    try:
        with decoding():
            open_image(bytes(damaged)).convert("RGB")
    except DecodeError:
        usable = False
    with nullcontext() if usable else pytest.raises(DecodeError):
        center_crop(8)(bytes(damaged), ANY_KEY)


def test_bytes_after_the_end_of_a_jpeg_do_no_harm() -> None:
    data = encoded(coordinates(80, 60), "JPEG")
    assert (center_crop(8)(data + b"more", ANY_KEY) == center_crop(8)(data, ANY_KEY)).all()


def claiming(width: int, height: int, form: str) -> bytes:
    """A small picture whose header says that it is larger."""
    data = bytearray(encoded(Image.new("L", (9, 9)), form))
    if form == "PNG":
        data[16:24] = struct.pack(">II", width, height)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    else:
        place = data.index(b"\xff\xc0") + 5
        data[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize(("width", "height"), [(8001, 8000), (10_000, 10_000), (60_000, 60_000)])
@pytest.mark.parametrize(
    "read", [open_image, partial(center_crop(8), _key=ANY_KEY), partial(random_resized_crop(8, 1), key=ANY_KEY)]
)
def test_a_decompression_bomb_is_refused_before_it_is_decoded(
    read: Callable[[bytes], object], width: int, height: int, form: str
) -> None:
    tracemalloc.start()
    with warnings.catch_warnings(), pytest.raises(ValueError, match="more than 64,000,000"):
        warnings.simplefilter("error")  # Pillow's own warning is of no use beside a refusal
        read(claiming(width, height, form))
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


def test_the_largest_image_allowed_is_decoded() -> None:
    side = int(MAX_PIXELS**0.5)
    assert open_image(encoded(Image.new("1", (side, side)))).size == (side, side)
