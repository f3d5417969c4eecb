"""A folder of shards as a torch dataset that is asked for whole batches."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from shards.batch import Batch
from shards.errors import DataError
from shards.images import DECODE_ERRORS, Transform
from shards.keyed_random import key_of, mix
from shards.manifest import Manifest
from shards.order import EpochOrder, batch_positions, epoch_order
from shards.reader import ShardReader

Tokenize = Callable[[list[str]], torch.Tensor]
"""C captions -> (C, T) int64."""

_CROP, _CAPTION = 3, 4  # what a random number is for; part of its key (1 and 2 are the order's)


@dataclass(frozen=True)
class Request:
    """The part `first .. last - 1` of the global batch that starts at `position` of `epoch`.

    `epoch` None asks for samples `position + first .. position + last - 1` in the manifest's order, with
    all of their captions.
    """

    epoch: int | None
    position: int
    global_batch_size: int
    first: int
    last: int


class ShardDataset(Dataset[Batch]):
    """Maps a `Request` to a `Batch`. Whatever is random is keyed by (seed, epoch, sample)."""

    def __init__(
        self,
        manifest: Manifest,
        transform: Transform,
        tokenize: Tokenize,
        seed: int = 0,
        captions: Literal["one", "first"] = "one",
    ) -> None:
        self.manifest = manifest
        self.transform = transform
        self.tokenize = tokenize
        self.seed = seed
        self.captions = captions
        self.reader = ShardReader(manifest)
        self._current: EpochOrder | None = None

    def _order(self, epoch: int) -> EpochOrder:
        if self._current is None or self._current.epoch != epoch:
            self._current = epoch_order(self.manifest.samples, self.seed, epoch)
        return self._current

    def _locate(self, request: Request) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        if request.epoch is not None:
            positions = batch_positions(request.position, request.global_batch_size)
            return self._order(request.epoch).locate(positions[request.first : request.last])
        sample = np.arange(request.position + request.first, request.position + request.last)
        shard = np.searchsorted(self.manifest.first_sample, sample, side="right") - 1
        return shard, sample - self.manifest.first_sample[shard]

    def __getitem__(self, request: Request) -> Batch:
        shards, rows = self._locate(request)
        pixels, image_ids, texts, caption_image = [], [], [], []
        samples = self.manifest.first_sample[shards] + rows
        for place, (shard, row, sample) in enumerate(zip(shards, rows, samples, strict=True)):
            raw = self.reader.read(int(shard), int(row))
            key = key_of(self.seed, request.epoch or 0, _CROP, int(sample))
            try:
                pixels.append(self.transform(raw.image, key))
            except DECODE_ERRORS as error:
                name = self.reader.name(int(shard), int(row))
                raise DataError(f"{name}: the image does not decode ({error})") from None
            chosen = self._choose(raw.captions, request.epoch, int(sample))
            texts.extend(chosen)
            caption_image.extend([place] * len(chosen))
            image_ids.append(int(self.reader.index(int(shard)).image_ids[row]))
        return Batch(
            images=torch.from_numpy(np.stack(pixels)),
            text=self.tokenize(texts),
            caption_image=torch.tensor(caption_image),
            image_ids=torch.tensor(image_ids),
            samples=torch.from_numpy(samples),
            captions=texts,
        )

    def _choose(self, captions: list[str], epoch: int | None, sample: int) -> list[str]:
        if epoch is None:
            return captions
        if self.captions == "first":
            return captions[:1]
        draw = mix(np.array([key_of(self.seed, epoch, _CAPTION, sample)]))[0]
        return [captions[int(draw % np.uint64(len(captions)))]]
