"""Single samples of a folder: what is damaged is named, and is no more than a damaged sample."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shards.convert import Options, write_split
from shards.errors import DataError, SampleError
from shards.images import center_crop
from shards.manifest import Manifest, read_index, read_manifest
from shards.samples import SampleLoader
from shards.tarsample import TarSample
from shards.training import Captions, Part, TrainingSet
from tests.shards.fakes import fake_manifest
from tests.shards.pictures import with_regions
from tests.shards.test_images import damaged_avif, damaged_tiff

KEY = np.uint64(0)


@pytest.mark.parametrize("make", [damaged_avif, damaged_tiff])
def test_a_picture_that_no_decoder_expects_is_a_damaged_sample(
    tmp_path: Path, make_shards: Callable[..., Manifest], monkeypatch: pytest.MonkeyPatch, make: Callable[[], bytes]
) -> None:
    loader = SampleLoader(make_shards(tmp_path / "train", 3), center_crop(8))
    monkeypatch.setattr(loader.reader, "read", lambda _shard, _row: TarSample(make(), ["words"]))
    with pytest.raises(SampleError, match=r"sample picture-0001: the image does not decode \("):
        loader.load(0, 1, KEY)


@pytest.fixture
def with_both(tmp_path: Path) -> Manifest:
    """Two samples that hold an image and regions of 3 x 4."""
    records = [with_regions(number, image=True) for number in range(2)]
    write_split(records, tmp_path / "both", dataset="d", split="train", options=Options())
    return read_manifest(tmp_path / "both")


def test_regions_that_claim_what_is_not_there_are_a_damaged_sample(with_both: Manifest) -> None:
    path, offset = Path(with_both.shard_location(0)), int(read_index(with_both, 0).offsets[1])
    data = path.read_bytes()
    place = data.index(b"'shape': (3, 4)", offset)
    path.write_bytes(data[:place] + b"'shape': (9999999999, 9999), }" + data[place + 30 :])
    loader = SampleLoader(with_both, center_crop(8))
    assert loader.load(0, 0, KEY).regions is not None
    with pytest.raises(SampleError, match=r"sample key-001: damaged sample \(regions of shape"):
        loader.load(0, 1, KEY)


def test_regions_saved_as_an_archive_are_a_damaged_sample(with_both: Manifest) -> None:
    stream = io.BytesIO()
    np.savez(stream, a=np.zeros((1, 1)))
    path = Path(with_both.shard_location(0))
    data = path.read_bytes()
    place = data.index(b"\x93NUMPY")
    path.write_bytes(data[:place] + stream.getvalue()[:8] + data[place + 8 :])
    with pytest.raises(SampleError, match="sample key-000: damaged sample"):
        SampleLoader(with_both, center_crop(8)).load(0, 0, KEY)


@pytest.mark.parametrize("captions", ["one", "first", "all"])
@pytest.mark.parametrize(("column", "told"), [("captions", "captions"), ("samples", "samples")])
def test_a_data_set_that_gives_nothing_is_told_as_such_and_not_by_its_weight(
    captions: Captions, column: str, told: str
) -> None:
    whole, empty = fake_manifest([3, 4], "whole"), fake_manifest([3, 4], "empty")
    empty = replace(empty, captions=np.zeros(2, np.int64))
    if column == "samples":
        empty = replace(empty, samples=np.zeros(2, np.int64))
    parts = (Part(whole, captions=captions), Part(empty, captions=captions))
    with pytest.raises(DataError, match=f"^empty: the data set holds no {told}; leave it out$"):
        assert TrainingSet(parts).counts
