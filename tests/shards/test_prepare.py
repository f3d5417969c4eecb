import errno
import io
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from shards.errors import DataError
from shards.images import MAX_PIXELS
from shards.prepare import Resize, load_sample
from shards.sources.record import Record, Skipped
from shards.tarwriter import Sample
from tests.shards.pictures import encoded, record, regions_of

TO_64 = Resize(64)
FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tiff"}


def loaded(data: bytes, resize: Resize = Resize()) -> Sample:  # noqa: B008
    sample = load_sample(record(0, data), resize)
    assert isinstance(sample, Sample), sample
    assert sample.image is not None
    return sample


def opened(sample: Sample) -> Image.Image:
    assert sample.image is not None
    image = Image.open(io.BytesIO(sample.image))
    image.load()
    assert image.size == (sample.width, sample.height)
    return image


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def smooth(mode: str = "RGB", size: tuple[int, int] = (200, 100)) -> Image.Image:
    """A gradient, which survives resizing and lossy formats."""
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    pixels = np.stack([x, y, 255 - x], axis=2).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def alike(image: Image.Image, other: Image.Image, tolerance: float = 8) -> bool:
    one, two = (np.asarray(each.convert("RGB").resize((32, 16)), np.float64) for each in (image, other))
    return bool(np.abs(one - two).mean() < tolerance)


@pytest.mark.parametrize(("form", "extension"), [*FORMATS.items(), ("PPM", "img")])
def test_an_image_keeps_its_format_and_bytes(form: str, extension: str) -> None:
    data = encoded(0, form)
    sample = loaded(data)
    assert (sample.image, sample.extension) == (data, extension)
    assert (sample.width, sample.height) == (30, 20)


@pytest.mark.parametrize("form", FORMATS)
def test_a_large_image_is_made_smaller_in_its_own_format(form: str) -> None:
    sample = loaded(saved(smooth(), form), TO_64)
    image = opened(sample)
    assert (image.format, sample.extension) == (form, FORMATS[form])
    assert image.size == (128, 64)
    assert alike(image, smooth())


def test_a_format_that_pillow_cannot_write_becomes_png() -> None:
    icon = saved(smooth(size=(200, 200)), "PPM")
    image = opened(loaded(icon, TO_64))
    assert (image.format, image.size) == ("PNG", (64, 64))


@pytest.mark.parametrize("size", [(64, 64), (64, 500), (30, 20)])
def test_an_image_that_is_small_enough_keeps_its_bytes(size: tuple[int, int]) -> None:
    data = encoded(0, size=size)
    assert loaded(data, TO_64).image == data


@pytest.mark.parametrize(
    ("size", "expected"), [((65, 64 * 3), (64, 189)), ((1000, 999), (64, 64)), ((99, 1000), (64, 646))]
)
def test_the_shorter_side_is_the_one_that_is_bounded(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert opened(loaded(encoded(0, size=size), TO_64)).size == expected


def test_quality_is_that_of_the_new_file() -> None:
    data = encoded(0, size=(300, 300))
    sizes = [len(loaded(data, Resize(100, quality)).image or b"") for quality in (20, 60, 95)]
    assert sizes == sorted(sizes)
    assert sizes[0] * 2 < sizes[2]


@pytest.mark.parametrize("wanted", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("form", FORMATS)
def test_formats_are_converted_when_asked(form: str, wanted: str) -> None:
    data = saved(smooth(), form)
    sample = loaded(data, Resize(format=wanted))
    assert (opened(sample).format, sample.extension) == (wanted, FORMATS[wanted])
    assert alike(opened(sample), smooth())
    assert (sample.image == data) == (form == wanted)


def test_a_palette_is_not_interpolated() -> None:
    picture = smooth().quantize(16)
    assert alike(opened(loaded(saved(picture, "PNG"), TO_64)), picture)
    clear = picture.copy()
    clear.info["transparency"] = 0
    image = opened(loaded(saved(clear, "PNG"), TO_64))
    assert image.mode == "RGBA"
    assert np.asarray(image)[..., 3].min() < 255


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGBA", "CMYK", "I;16", "I", "F", "YCbCr", "LAB"])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", None])
def test_pixels_of_all_kinds_are_written_in_all_formats(mode: str, form: str | None) -> None:
    picture = smooth("L" if mode in ("I;16", "I", "F") else "RGB")
    expected = picture
    if mode in ("I", "I;16"):
        picture = Image.fromarray(np.asarray(picture).astype(np.uint16 if mode == "I;16" else np.int32) * 257)
    elif mode == "1":
        picture = expected = Image.fromarray(np.asarray(picture)[..., 1] > 127).convert("1")
    elif mode == "LAB":
        convert = ImageCms.buildTransform(
            ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
        )
        picture = ImageCms.applyTransform(picture, convert)
        assert picture is not None
    else:
        picture = picture.convert(mode)
    image = opened(loaded(saved(picture, "PNG" if mode in ("1", "LA") else "TIFF"), Resize(64, format=form)))
    assert image.size == (128, 64)
    if image.mode in ("I", "I;16"):
        image = image.convert("I").point(lambda value: value / 257).convert("L")
    elif mode in ("LA", "L"):
        expected = smooth("L")
    if mode != "LAB":  # whose colours Pillow does not convert
        assert alike(image, expected, 20 if mode == "1" else 8)


def test_a_cmyk_jpeg_stays_one() -> None:
    data = saved(smooth("CMYK"), "JPEG")
    image = opened(loaded(data, TO_64))
    assert (image.format, image.mode) == ("JPEG", "CMYK")
    assert alike(image, Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("wanted", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_exif_and_colour_profile_are_kept(form: str, wanted: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = opened(loaded(saved(smooth(), form, exif=exif, icc_profile=profile), Resize(64, format=wanted)))
    assert image.format == wanted
    assert image.getexif()[0x0112] == 6
    assert image.info["icc_profile"] == profile


def test_a_profile_of_other_channels_is_dropped() -> None:
    data = saved(smooth("CMYK"), "JPEG", icc_profile=b"of four channels")
    assert opened(loaded(data, TO_64)).info["icc_profile"] == b"of four channels"
    assert "icc_profile" not in opened(loaded(data, Resize(64, format="PNG"))).info


@pytest.mark.parametrize("resize", [Resize(), TO_64])
def test_a_tiff_that_says_how_it_lies_has_the_size_of_what_is_seen(resize: Resize) -> None:
    data = saved(smooth(), "TIFF", tiffinfo={274: 6})
    assert opened(loaded(data, resize)).size == ((100, 200) if resize.side is None else (64, 128))


JPEG = encoded(1, size=(200, 200))


@pytest.mark.parametrize("resize", [Resize(), TO_64])
@pytest.mark.parametrize(
    "data", [JPEG[: len(JPEG) // 2], b"<html>404 not found</html>", b""], ids=["truncated", "text", "empty"]
)
def test_what_does_not_decode_is_skipped(data: bytes, resize: Resize) -> None:
    item = load_sample(record(0, data), resize)
    assert isinstance(item, Skipped)
    assert item.reason.startswith("the image does not decode (")
    assert "0x" not in item.reason, "an address differs in every run"


def test_files_that_cannot_be_read_are_skipped(tmp_path: Path) -> None:
    loads = {
        "the image file is missing": (tmp_path / "nowhere.jpg").read_bytes,
        "the image file cannot be read ([Errno 21]": tmp_path.read_bytes,
        "the image file cannot be read (embedded null byte)": Path("a\0b").read_bytes,
    }
    for reason, load in loads.items():
        item = load_sample(Record("key", 1, ("x",), load), Resize())
        assert isinstance(item, Skipped)
        assert item.reason.startswith(reason)


def test_a_machine_that_cannot_read_skips_nothing() -> None:
    def load() -> bytes:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with pytest.raises(DataError, match=r"key: the image file cannot be read .*Too many open files"):
        load_sample(Record("key", 1, ("x",), load), Resize())


def test_a_decompression_bomb_is_skipped() -> None:
    item = load_sample(record(0, saved(Image.new("1", (MAX_PIXELS // 8000 + 1, 8000)), "PNG")), Resize())
    assert isinstance(item, Skipped)
    assert f"{MAX_PIXELS:,}" in item.reason


def test_what_the_new_format_cannot_hold_is_skipped() -> None:
    item = load_sample(record(0, saved(Image.new("L", (17_000, 20)), "PNG")), Resize(format="WEBP"))
    assert isinstance(item, Skipped)
    assert item.reason.startswith("the image cannot be written as WEBP (")


@pytest.mark.parametrize(
    ("regions", "reason"),
    [
        (partial(regions_of, (12,), 1.0), "an array of shape (12,), not of regions x features"),
        (partial(regions_of, (0, 4), 1.0), "an array of shape (0, 4)"),
        (partial(regions_of, (3, 4), np.nan), "a value is not finite"),
        (partial(np.asarray, ["a", "b"]), "could not convert string to float"),
        (partial(np.load, "/nowhere.npy"), "the regions are missing"),
    ],
)
def test_regions_that_are_none_are_skipped(regions: object, reason: str) -> None:
    item = load_sample(Record("key", 1, ("x",), None, regions), Resize())  # type: ignore[arg-type]
    assert isinstance(item, Skipped)
    assert reason in item.reason


def test_regions_become_float32() -> None:
    sample = load_sample(Record("key", 1, ("x",), None, partial(np.ones, (3, 4))), Resize())
    assert isinstance(sample, Sample)
    assert sample.regions is not None
    assert (sample.regions.dtype, sample.image, sample.width) == (np.float32, None, 0)
