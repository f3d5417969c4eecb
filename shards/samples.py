"""A sample's bytes -> what a batch is made of: pixels, regions, captions."""

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shards.decoding import DecodeError
from shards.errors import SampleError
from shards.images import Pixels, Transform
from shards.manifest import IMAGE, REGIONS, Manifest
from shards.reader import INDEXES, ShardReader
from shards.sources.record import Regions


@dataclass(frozen=True, slots=True)
class Loaded:
    """One sample in memory."""

    pixels: Pixels | None
    regions: Regions | None
    captions: list[str]
    image_id: int
    caption_ids: tuple[int, ...] = ()
    """The data set's own: one a caption, or none at all."""


class SampleLoader:
    """Reads and decodes single samples of one folder of shards."""

    def __init__(
        self,
        manifest: Manifest,
        transform: Transform,
        parts: Collection[str] | None = None,
        region_width: int | None = None,
    ) -> None:
        """`parts` are those of `manifest.holds` that are wanted; all of them where it is not given.

        `region_width` is how many features a region must have, where that matters.
        """
        self.manifest, self.transform, self.region_width = manifest, transform, region_width
        self.parts = manifest.holds if parts is None else parts
        self.reader = ShardReader(manifest)
        self._caption_ends: OrderedDict[int, npt.NDArray[np.int64]] = OrderedDict()

    def caption_ends(self, shard: int) -> npt.NDArray[np.int64]:
        """(samples,) captions of the shard up to and with those of each sample."""
        if shard not in self._caption_ends:
            self._caption_ends[shard] = np.cumsum(self.reader.index(shard).captions, dtype=np.int64)
            if len(self._caption_ends) > INDEXES:
                self._caption_ends.popitem(last=False)
        return self._caption_ends[shard]

    def load(self, shard: int, row: int, key: np.uint64) -> Loaded:
        """The sample at `row` of `shard`; `key` decides the augmentation of its image.

        Raises `SampleError` where it is damaged, `DataError` where its shard cannot be read at all.
        """
        raw = self.reader.read(shard, row)
        # no more than what is wanted, should a sample hold more: all rows of a batch have the same parts
        image = raw.image if IMAGE in self.parts else None
        regions = raw.regions if REGIONS in self.parts else None
        for name, part in ((IMAGE, image), (REGIONS, regions)):
            if part is None and name in self.parts:
                raise SampleError(f"{self.reader.name(shard, row)}: the sample holds no {name}")
        if regions is not None and self.region_width not in (None, regions.shape[1]):
            raise SampleError(
                f"{self.reader.name(shard, row)}: its regions have {regions.shape[1]} features, "
                f"not {self.region_width}"
            )
        try:
            pixels = None if image is None else self.transform(image, key)
        except DecodeError as error:
            raise SampleError(f"{self.reader.name(shard, row)}: the image does not decode ({error})") from None
        image_id = int(self.reader.index(shard).image_ids[row])
        return Loaded(pixels, regions, raw.captions, image_id, raw.caption_ids)
