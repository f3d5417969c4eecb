"""Some samples of a folder as a contact sheet: one HTML page with the pictures in it."""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from shards.decoding import decoding
from shards.images import open_image
from shards.manifest import Manifest, read_index
from shards.members import REGIONS, image_of, label_of
from shards.regions import decode_regions
from shards.tarwalk import DamagedTarError
from shards.tools.choose import Choice, choose
from shards.tools.indexed import sample_at
from shards.tools.pages import render

THUMBNAIL = 400
"""Longer side of a picture on the page, in pixels: twice what it takes up, for fine displays."""


@dataclass(frozen=True)
class Card:
    """One sample as the page shows it."""

    key: str
    shard: str
    row: int
    image_id: int
    size: str
    """Pixels of the image, or the shape of the regions."""
    kilobytes: float
    picture: str | None
    """A data URI."""
    captions: list[str]
    problem: str | None
    """Why there is no picture."""


def contact_sheet(
    manifest: Manifest, choice: Choice, on_sample: Callable[[int], None] = lambda _count: None
) -> tuple[bytes, int]:
    """The page, UTF-8, and the number of its samples. Raises `DataError` when none is as it is asked for."""
    places = choose(manifest, choice)
    cards = []
    for shard, row in places:
        cards.append(_card(manifest, shard, row))
        on_sample(1)
    drawn = [f"{len(cards):,} of {manifest.num_samples:,} samples"]
    drawn += [f"shard {choice.shard}"] if choice.shard is not None else []
    drawn += [f"key {choice.key}"] if choice.key is not None else []
    drawn += [f"captions with “{choice.word}”"] if choice.word is not None else []
    drawn += [f"seed {choice.seed}"] if choice.key is None else []
    return render("inspect.html.j2", manifest=manifest, cards=cards, drawn=", ".join(drawn)), len(cards)


def _card(manifest: Manifest, shard: int, row: int) -> Card:
    index = read_index(manifest, shard)
    captions: list[str] = []
    picture, problem, size = None, None, f"{index.widths[row]} × {index.heights[row]}"
    try:
        sample = sample_at(manifest.shard_location(shard), index, row)
        captions = label_of(sample.members).captions
        image, regions = image_of(sample.members), dict(sample.members).get(REGIONS)
        if image is not None:
            picture = _thumbnail(image)
        elif regions is not None:
            shape = decode_regions(regions).shape
            size, problem = f"regions {' × '.join(map(str, shape))}", "no image, regions alone"
        else:
            problem = "no image"
    except (DamagedTarError, OSError, ValueError) as error:
        problem = f"{error}"
    return Card(
        key=index.key(row),
        shard=manifest.names[shard],
        row=row,
        image_id=int(index.image_ids[row]),
        size=size,
        kilobytes=float(index.sizes[row]) / 1000,
        picture=picture,
        captions=captions,
        problem=problem,
    )


def _thumbnail(data: bytes) -> str:
    """A small JPEG as a data URI. Raises `DecodeError`."""
    with decoding(), open_image(data) as image:
        image.draft("RGB", (THUMBNAIL, THUMBNAIL))
        if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip to white
            small = image.convert("I").point(lambda value: value * (1 / 256)).convert("L").convert("RGB")
        elif image.has_transparency_data:
            layer = image.convert("RGBA")
            small = Image.new("RGB", layer.size, "white")
            small.paste(layer, mask=layer)
        else:
            small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
