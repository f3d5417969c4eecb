"""What the tests of all sources share: looking into a source, and small image files."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from shards.sources.record import Record, Skipped, Source


def records(source: Source, split: str = "train") -> list[Record]:
    (found,) = (one for one in source.splits if one.name == split)
    return [item for item in found.items if isinstance(item, Record)]


def left_out(source: Source, split: str | None = None) -> list[Skipped]:
    found = [one for one in source.splits if split in (None, one.name)]
    return [item for one in found for item in one.items if isinstance(item, Skipped)]


def jpeg(number: int = 0, size: tuple[int, int] = (30, 20)) -> bytes:
    """A small picture, another one for another number."""
    stream = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


def picture(path: Path, number: int = 0, size: tuple[int, int] = (30, 20)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg(number, size))
