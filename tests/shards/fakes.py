"""Data sets without files, for many small cases: every sample has the same picture, and captions that tell it."""

import io
from collections.abc import Iterable
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image

from shards.errors import SampleError
from shards.manifest import Manifest
from shards.tarsample import TarSample
from shards.training import Captions, Part, TrainDataset, TrainingSet, Unkeyed

SIZES = st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) > 0)


def tokenize(captions: list[str]) -> torch.Tensor:
    """The first 40 bytes of each caption: (C, 40)."""
    return torch.tensor([list(caption.encode().ljust(40))[:40] for caption in captions])


def captions_of(sample: int) -> list[str]:
    return [f"caption {place} of {sample}" for place in range(1 + sample % 4)]


def fake_manifest(sizes: list[int], name: str = "nowhere") -> Manifest:
    samples = np.array(sizes, np.int64)
    starts = np.concatenate([[0], np.cumsum(samples)])
    captions = [sum(len(captions_of(number)) for number in range(a, b)) for a, b in pairwise(starts.tolist())]
    names = tuple(map(str, range(len(sizes))))
    zeros = np.zeros(len(sizes), np.int64)
    return Manifest(
        name, "fake", "train", ("image",), names, names, samples, np.array(captions), zeros, names, names, name
    )


class FakeReader:
    """Stands in for `ShardReader`; the samples in `broken` are damaged."""

    def __init__(self, manifest: Manifest, broken: frozenset[int] = frozenset()) -> None:
        self.manifest, self.broken = manifest, broken
        self.told: list[tuple[int, int, int]] = []
        """What was to be read ahead."""
        self.takes_hints = True
        stream = io.BytesIO()
        Image.new("RGB", (2, 2)).save(stream, "PNG")
        self.image = stream.getvalue()

    def number(self, shard: int, row: int) -> int:
        assert 0 <= row < self.manifest.samples[shard]
        return int(self.manifest.first_sample[shard]) + row

    def name(self, shard: int, row: int) -> str:
        return f"{self.manifest.location}: sample {self.number(shard, row)}"

    def read(self, shard: int, row: int) -> TarSample:
        if self.number(shard, row) in self.broken:
            raise SampleError(f"{self.name(shard, row)}: broken")
        return TarSample(self.image, captions_of(self.number(shard, row)))

    def prefetch(self, shard: int, first: int, last: int) -> bool:
        assert 0 <= first < last <= self.manifest.samples[shard]
        self.told.append((shard, first, last))
        return self.takes_hints

    def bring_indexes(self, shards: Iterable[int]) -> None:
        assert all(0 <= shard < len(self.manifest.names) for shard in shards)

    def index(self, shard: int) -> SimpleNamespace:
        numbers = self.manifest.first_sample[shard] + np.arange(self.manifest.samples[shard])
        captions = np.array([len(captions_of(number)) for number in numbers], np.int32)
        return SimpleNamespace(image_ids=1000 + numbers, captions=captions)


def key_as_pixel(_image: bytes, key: np.uint64) -> np.ndarray:
    """One pixel that shows the random key of the visit."""
    return np.array([*np.uint64(key).tobytes()[:3]], np.uint8).reshape(1, 1, 3)


def fake_training(
    *data_sets: list[int],
    seed: int = 0,
    captions: Captions = "one",
    weights: list[float] | None = None,
    mix: str = "epoch",
    broken: frozenset[int] = frozenset(),
) -> TrainDataset:
    """A training set over shards of the given sizes; `broken` counts in the first data set."""
    weights = weights or [1.0] * len(data_sets)
    manifests = [fake_manifest(sizes, f"nowhere-{place}") for place, sizes in enumerate(data_sets)]
    parts = tuple(Part(manifest, weight, captions) for manifest, weight in zip(manifests, weights, strict=True))
    dataset = TrainDataset(TrainingSet(parts, mix), key_as_pixel, Unkeyed(tokenize), seed)  # type: ignore[arg-type]
    for place, (loader, manifest) in enumerate(zip(dataset.loaders, manifests, strict=True)):
        loader.reader = FakeReader(manifest, broken if place == 0 else frozenset())  # type: ignore[assignment]
    return dataset
