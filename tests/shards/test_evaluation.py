from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.convert import Options, write_split
from shards.errors import DataError
from shards.evaluation import EvaluationDataset, evaluation_batches
from shards.images import random_resized_crop
from shards.loader import Rank
from shards.manifest import Manifest, read_index, read_manifest
from tests.conftest import numbered_record
from tests.shards.fakes import SIZES, FakeReader, captions_of, fake_manifest, key_as_pixel, tokenize


def fake_evaluation(sizes: list[int]) -> EvaluationDataset:
    dataset = EvaluationDataset(fake_manifest(sizes), key_as_pixel, tokenize)
    dataset.loader.reader = FakeReader(dataset.manifest)  # type: ignore[assignment]
    return dataset


@settings(max_examples=100, deadline=None)
@given(SIZES, st.integers(1, 9), st.integers(2, 12))
def test_every_sample_is_dealt_once_in_equally_many_batches(
    sizes: list[int], world_size: int, batch_size: int
) -> None:
    dataset = fake_evaluation(sizes)
    if sum(sizes) < world_size:
        with pytest.raises(DataError, match=f"{sum(sizes)} samples for {world_size} processes"):
            evaluation_batches(dataset, batch_size, Rank(0, world_size))
        return
    ranks = [list(evaluation_batches(dataset, batch_size, Rank(rank, world_size))) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    samples = []
    for batch in (batch for batches in ranks for batch in batches):
        assert 1 <= len(batch) <= batch_size
        assert batch.valid.all()
        numbers = batch.samples.tolist()
        assert batch.image_ids.tolist() == [1000 + number for number in numbers]
        assert batch.captions == [caption for number in numbers for caption in captions_of(number)]
        owners = [place for place, number in enumerate(numbers) for _ in captions_of(number)]
        assert batch.caption_image.tolist() == owners
        assert torch.equal(batch.text, tokenize(batch.captions))
        samples.extend(numbers)
    assert samples == list(range(sum(sizes)))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, make_shards: Callable[..., Manifest]) -> Manifest:
    """Twenty-three samples in shards of 6, 6, 6 and 5."""
    return make_shards(tmp_path_factory.mktemp("evaluation") / "train", 23, per_shard=6)


def dataset_of(manifest: Manifest) -> EvaluationDataset:
    return EvaluationDataset(manifest, random_resized_crop(16, 0.3), tokenize)


def test_workers_read_the_same(manifest: Manifest) -> None:
    plain, with_workers = (list(evaluation_batches(dataset_of(manifest), 4, Rank(1, 2), n)) for n in (0, 2))
    assert len(plain) == len(with_workers) == 3
    for one, other in zip(plain, with_workers, strict=True):
        assert one.images is not None
        assert other.images is not None
        assert torch.equal(one.images, other.images)
        assert one.captions == other.captions
        assert one.samples.tolist() == other.samples.tolist()


def test_the_pictures_belong_to_their_captions(manifest: Manifest) -> None:
    dataset = dataset_of(manifest)
    for shard in range(4):
        for row in range(int(manifest.samples[shard])):
            number = int(manifest.first_sample[shard]) + row
            assert dataset.loader.reader.read(shard, row).captions[0] == f"caption 0 of picture {number}"
    batch = next(evaluation_batches(dataset, 23, Rank()))
    assert batch.image_ids.tolist() == [100 + number for number in range(23)]
    assert batch.images is not None
    assert batch.images.shape == (23, 16, 16, 3)
    assert batch.images.dtype == torch.uint8


def test_the_ids_of_captions_come_with_them(tmp_path: Path) -> None:
    records = [
        replace(numbered_record(number), caption_ids=ids) for number, ids in enumerate([(7, 5, 6), (), (1, 2, 3)])
    ]
    write_split(records, tmp_path / "test", dataset="synthetic", split="test", options=Options())
    (batch,) = evaluation_batches(dataset_of(read_manifest(tmp_path / "test")), 4, Rank())
    assert batch.caption_ids is not None
    assert batch.caption_ids.tolist() == [7, 5, 6, -1, -1, -1, 1, 2, 3]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_sample_ends_the_measurement_in_one_line(
    tmp_path: Path, make_shards: Callable[..., Manifest], workers: int
) -> None:
    manifest = make_shards(tmp_path / "train", 6)
    path, offset = Path(manifest.shard_location(1)), int(read_index(manifest, 1).offsets[0])
    data = bytearray(path.read_bytes())
    data[offset + 512 : offset + 1024] = bytes(512)  # the start of the image
    path.write_bytes(data)
    with pytest.raises(DataError) as raised:
        list(evaluation_batches(dataset_of(manifest), 4, Rank(), workers))
    message = str(raised.value)
    assert message.startswith(f"{path}: sample picture-0005: the image does not decode (")
    assert "\n" not in message


@settings(max_examples=20, deadline=None)
@given(SIZES, st.integers(2, 12), st.integers(0, 3))
def test_what_a_process_is_asked_for_next_is_read_ahead(sizes: list[int], batch_size: int, workers: int) -> None:
    dataset = fake_evaluation(sizes)
    reader = dataset.loader.reader
    assert isinstance(reader, FakeReader)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shards.evaluation.serve", lambda _dataset, spans, _workers: spans)
        spans = list(evaluation_batches(dataset, batch_size, Rank(), workers))
    for place, span in enumerate(spans):
        reader.told = []
        batch = dataset[span]
        told = [int(dataset.manifest.first_sample[s]) + row for s, a, b in reader.told for row in range(a, b)]
        wanted = batch.samples.tolist()
        if place + max(1, workers) < len(spans):
            after = spans[place + max(1, workers)]
            wanted += range(after.first, after.last)
        assert told == wanted
