"""The pictures of a folder of shards, small, as data URIs with the words that stand for them."""

import base64
import io
from dataclasses import dataclass

import numpy as np

from shards.decoding import DecodeError, decoding
from shards.errors import SampleError
from shards.images import open_image, to_rgb
from shards.manifest import Manifest
from shards.reader import ShardReader
from trainer.embed import Embeddings

THUMBNAIL = 176
"""Longer side of a picture on the page, in pixels: shown at a little over half of that, sharp on fine screens."""
PICTURE_BYTES = 12_000
"""Of one picture, unless it is nothing but noise; some two hundred stand on a page."""
QUALITIES = (82, 65, 45, 25)


class Thumbnails:
    """The pictures by sample number, one decoded at a time; None where the shards hold none that can be shown."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest, self.reader = manifest, ShardReader(manifest)

    def __getitem__(self, sample: int) -> str | None:
        try:
            encoded = self.reader.read(*self._place(sample)).image
            return None if encoded is None else as_uri(encoded, THUMBNAIL)
        except (DecodeError, SampleError):
            return None  # the measurement has its own word on what cannot be read

    def key(self, sample: int) -> str:
        """The sample's name in its shard."""
        shard, row = self._place(sample)
        return self.reader.index(shard).key(row)

    def _place(self, sample: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self.manifest.first_sample, sample, side="right")) - 1
        return shard, sample - int(self.manifest.first_sample[shard])


def as_uri(encoded: bytes, side: int) -> str:
    """An encoded picture as a JPEG of at most `side` pixels, of the best quality that fits `PICTURE_BYTES`.

    Raises `DecodeError`.
    """
    with decoding():
        image = open_image(encoded)
        image.draft("RGB", (2 * side, 2 * side))
        image = to_rgb(image)
        image.thumbnail((side, side))
    for quality in QUALITIES:
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=quality, optimize=True)
        if stream.tell() <= PICTURE_BYTES:
            break
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


@dataclass(frozen=True)
class Picture:
    """A picture on the page."""

    uri: str | None
    """None where there is none to show: its words stand in its place."""
    words: str
    """Its first caption, or its key where it has none."""
    key: str


class Pictures:
    """The pictures of an embedded split."""

    def __init__(self, manifest: Manifest, embeddings: Embeddings) -> None:
        self.thumbnails = Thumbnails(manifest)
        images, first = np.unique(embeddings.caption_image.cpu().numpy(), return_index=True)
        self._words = {int(image): embeddings.captions[row] for image, row in zip(images, first, strict=True)}

    def __call__(self, sample: int) -> Picture:
        key = self.thumbnails.key(sample)
        return Picture(self.thumbnails[sample], self._words.get(sample, key), key)
