"""Single samples of a folder: what is damaged is named, and is no more than a damaged sample."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shards.batch import Batch
from shards.convert import Options, write_split
from shards.errors import DataError, SampleError
from shards.images import center_crop
from shards.loader import Rank, TrainLoader
from shards.manifest import Manifest, read_index, read_manifest
from shards.samples import SampleLoader
from shards.sources.record import Record
from shards.tarsample import TarSample
from shards.training import Captions, Part, TrainDataset, TrainingSet, Unkeyed
from tests.shards.fakes import fake_manifest, tokenize
from tests.shards.pictures import record, with_regions
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


def test_regions_of_another_width_than_the_models_are_a_damaged_sample(with_both: Manifest) -> None:
    assert SampleLoader(with_both, center_crop(8), region_width=4).load(0, 1, KEY).regions is not None
    loader = SampleLoader(with_both, center_crop(8), region_width=6)
    with pytest.raises(SampleError, match="sample key-001: its regions have 4 features, not 6"):
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


def split_of(root: Path, records: list[Record]) -> Manifest:
    write_split(records, root, dataset="d", split="train", options=Options())
    return read_manifest(root)


def batch_of(*manifests: Manifest) -> Batch:
    dataset = TrainDataset(TrainingSet(tuple(map(Part, manifests))), center_crop(8), Unkeyed(tokenize))
    return next(iter(TrainLoader(dataset, dataset.training_set.num_visits, Rank())))


def test_a_mixture_has_what_all_of_its_data_sets_hold(tmp_path: Path, with_both: Manifest) -> None:
    images = split_of(tmp_path / "images", [record(number) for number in range(5)])
    regions = split_of(tmp_path / "regions", [with_regions(number) for number in range(3)])
    batch = batch_of(images, with_both)
    assert batch.images is not None
    assert (len(batch.images), batch.regions) == (7, None)
    batch = batch_of(with_both, regions)
    assert batch.regions is not None
    assert (len(batch.regions), batch.images) == (5, None)
    batch = batch_of(with_both)
    assert batch.images is not None
    assert batch.regions is not None
    assert len(batch.images) == len(batch.regions) == 2


def test_data_sets_with_nothing_in_common_are_not_mixed(tmp_path: Path) -> None:
    images = split_of(tmp_path / "images", [record(0)])
    regions = split_of(tmp_path / "regions", [with_regions(0)])
    told = r"/images \+ .*/regions: some hold images alone, others regions alone; leave one kind out$"
    with pytest.raises(DataError, match=told):
        batch_of(images, regions)


def test_a_part_that_the_manifest_does_not_name_is_left_alone(with_both: Manifest) -> None:
    """As in tars of others that were indexed for their images, of which some hold regions as well."""
    loaded = SampleLoader(replace(with_both, holds=("image",)), center_crop(8)).load(0, 0, KEY)
    assert loaded.pixels is not None
    assert loaded.regions is None
    loaded = SampleLoader(replace(with_both, holds=("regions",)), center_crop(8)).load(0, 0, KEY)
    assert loaded.pixels is None
    assert loaded.regions is not None
