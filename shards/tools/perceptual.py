"""Perceptual hashes: pictures that look alike have hashes that differ in few bits.

pHash, 64 bits: the signs of the picture's lowest frequencies against their median. A copy that was scaled,
compressed again or cropped by a few percent keeps almost all of them; a mirrored one does not.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from shards.decoding import decoding
from shards.images import open_image, to_rgb

BITS = 64
Hash = npt.NDArray[np.uint8]
"""(8,): 64 bits."""

_SIDE = 32  # pixels that the transform sees
_MIN_CONTRAST = 4.0
"""Standard deviation of the grey values, of 255. Below, the signs are of noise, and all flat pictures alike."""


def perceptual_hash(data: bytes) -> Hash | None:
    """The hash of an encoded picture; None for one that is almost uniform, whose hash would say nothing.

    Raises `shards.decoding.DecodeError`.
    """
    import imagehash

    with decoding():
        grey = _small_grey(open_image(data))
    if np.asarray(grey, np.float64).std() < _MIN_CONTRAST:
        return None
    return np.packbits(imagehash.phash(grey).hash.ravel())


def _small_grey(image: Image.Image) -> Image.Image:
    image.draft("L", (2 * _SIDE, 2 * _SIDE))  # libjpeg decodes at 1/2, 1/4 or 1/8 scale, without the colours
    upright = ImageOps.exif_transpose(image)  # tools that write a picture anew turn it upright
    grey = upright if upright.mode == "L" else to_rgb(upright).convert("L")
    return grey.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)


class HashSearch:
    """Finds all of M hashes that are near a given one: exact, some 10**9 comparisons a second and core."""

    def __init__(self, hashes: npt.NDArray[np.uint8]) -> None:
        """`hashes` is (M, 8) uint8."""
        import faiss

        self._index = faiss.IndexBinaryFlat(BITS)
        self._index.add(np.ascontiguousarray(hashes))

    def within(
        self, queries: npt.NDArray[np.uint8], distance: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """All pairs at most `distance` bits apart, for queries (N, 8) uint8: queries, hashes, distances.

        Sorted by query, then by hash.
        """
        if not self._index.ntotal or not len(queries):
            return (np.empty(0, np.int64),) * 3
        limits, distances, found = self._index.range_search(np.ascontiguousarray(queries), distance + 1)
        query = np.searchsorted(limits[1:], np.arange(len(found)), side="right")
        order = np.lexsort((found, query))
        return query[order], found[order].astype(np.int64), distances[order].astype(np.int64)
