import io
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shards.batch import Batch
from shards.dataset import ShardDataset
from shards.errors import DataError
from shards.images import random_resized_crop
from shards.loader import Position, Rank, TrainLoader, evaluation_batches
from shards.manifest import Manifest, read_index
from shards.order import batch_positions, epoch_order
from shards.tarsample import TarSample

SIZES = st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) > 0)


def tokenize(captions: list[str]) -> torch.Tensor:
    """The first 40 bytes of each caption: (C, 40)."""
    return torch.tensor([list(caption.encode().ljust(40))[:40] for caption in captions])


# Without files, for many small cases: every sample has the same picture, and as many captions as tell it apart.


def captions_of(sample: int) -> list[str]:
    return [f"caption {place} of {sample}" for place in range(1 + sample % 4)]


class FakeReader:
    """Stands in for `ShardReader` over shards that are nowhere."""

    def __init__(self, manifest: Manifest) -> None:
        self.first_sample = manifest.first_sample
        self.samples = manifest.samples
        stream = io.BytesIO()
        Image.new("RGB", (2, 2)).save(stream, "PNG")
        self.image = stream.getvalue()

    def read(self, shard: int, row: int) -> TarSample:
        assert 0 <= row < self.samples[shard]
        return TarSample(self.image, captions_of(int(self.first_sample[shard]) + row))

    def index(self, shard: int) -> SimpleNamespace:
        return SimpleNamespace(image_ids=1000 + self.first_sample[shard] + np.arange(self.samples[shard]))


def fake_dataset(sizes: list[int], seed: int = 0) -> ShardDataset:
    """A data set whose one pixel an image shows the random key of the visit."""
    samples = np.array(sizes, np.int64)
    manifest = Manifest(Path("nowhere"), "fake", "train", tuple(map(str, range(len(sizes)))), samples, samples)

    def key_as_pixel(_image: Image.Image, key: np.uint64) -> np.ndarray:
        return np.frombuffer(key.tobytes()[:3], np.uint8).reshape(1, 1, 3)

    dataset = ShardDataset(manifest, key_as_pixel, tokenize, seed)
    dataset.reader = FakeReader(manifest)  # type: ignore[assignment]
    return dataset


def joined(parts: list[Batch]) -> list[tuple[int, int, str, bytes]]:
    """Sample, image id, caption and pixels of a global batch, from the parts of its ranks in order."""
    rows = []
    for part in parts:
        assert part.caption_image.tolist() == list(range(len(part.images)))
        assert torch.equal(part.text, tokenize(part.captions))
        pixels = [image.numpy().tobytes() for image in part.images]
        rows.extend(zip(part.samples.tolist(), part.image_ids.tolist(), part.captions, pixels, strict=True))
    return rows


def stream(
    dataset: ShardDataset, size: int, world_size: int, start: Position | None = None, workers: int = 0
) -> Iterator[tuple[list[tuple[int, int, str, bytes]], Position]]:
    """Each global batch as all ranks together see it, with the state after it, which all ranks agree on."""
    start = start or Position()
    loaders = [
        TrainLoader(dataset, size, Rank(rank, world_size), workers, Position(start.epoch, start.position))
        for rank in range(world_size)
    ]
    for parts in zip(*loaders, strict=True):
        assert {len(part.images) for part in parts} == {size // world_size}
        states = [loader.state for loader in loaders]
        assert all(state == states[0] for state in states)
        yield joined(list(parts)), Position(states[0].epoch, states[0].position)


@st.composite
def runs(draw: st.DrawFn) -> tuple[list[int], int, int, int, int, int]:
    """Shard sizes, global batch size, two world sizes that divide it, batches before the kill, seed."""
    sizes = draw(SIZES)
    size = draw(st.integers(1, sum(sizes)))
    divisors = st.sampled_from([world for world in range(1, 9) if size % world == 0])
    return (
        sizes,
        size,
        draw(divisors),
        draw(divisors),
        draw(st.integers(0, 2 * (sum(sizes) // size) + 1)),
        draw(st.integers(0, 9)),
    )


@settings(max_examples=60, deadline=None)
@given(runs())
def test_a_global_batch_is_the_same_at_any_world_size(run: tuple[list[int], int, int, int, int, int]) -> None:
    sizes, size, world_size, _, batches, seed = run
    dataset = fake_dataset(sizes, seed)
    alone = [batch for batch, _ in islice(stream(dataset, size, 1), batches)]
    shared = [batch for batch, _ in islice(stream(dataset, size, world_size), batches)]
    assert shared == alone


@settings(max_examples=60, deadline=None)
@given(runs())
def test_a_run_resumes_exactly_at_any_point_and_world_size(run: tuple[list[int], int, int, int, int, int]) -> None:
    sizes, size, world_size, new_world_size, killed_after, seed = run
    dataset = fake_dataset(sizes, seed)
    more = sum(sizes) // size + 2
    whole = list(islice(stream(dataset, size, 1), killed_after + more))
    before = list(islice(stream(dataset, size, world_size), killed_after))
    state = before[-1][1] if before else Position()
    after = list(islice(stream(dataset, size, new_world_size, state), more))
    assert before + after == whole


@settings(max_examples=60, deadline=None)
@given(SIZES, st.data())
def test_an_epoch_sees_all_but_the_last_partial_batch_once(sizes: list[int], data: st.DataObject) -> None:
    total = sum(sizes)
    size = data.draw(st.integers(1, total))
    dataset = fake_dataset(sizes)
    batches = total // size
    batch_stream = stream(dataset, size, 1)
    for epoch in range(2):
        seen = []
        for batch, state in islice(batch_stream, batches):
            assert state.epoch == epoch
            seen.extend(sample for sample, *_ in batch)
        assert len(seen) == len(set(seen)) == total - total % size
        assert set(seen) <= set(range(total))


def test_batches_follow_the_canonical_order() -> None:
    sizes, size, seed = [40, 0, 33, 60], 30, 5
    dataset = fake_dataset(sizes, seed)
    for number, (batch, _) in enumerate(islice(stream(dataset, size, 2), 8)):
        epoch, place = divmod(number, 133 // size)
        shard, row = epoch_order(np.array(sizes), seed, epoch).locate(batch_positions(place * size, size))
        assert [sample for sample, *_ in batch] == (dataset.manifest.first_sample[shard] + row).tolist()


def test_every_row_belongs_to_its_sample() -> None:
    for batch, _ in islice(stream(fake_dataset([40, 0, 33, 60]), 30, 2), 8):
        for sample, image_id, caption, _ in batch:
            assert image_id == 1000 + sample
            assert caption in captions_of(sample)


def visits(seed: int, epochs: int, samples: int = 500) -> list[dict[int, tuple[str, bytes]]]:
    """For each epoch the caption and the random key with which each sample was seen."""
    batches = stream(fake_dataset([samples - 23, 23], seed), samples, 4)
    return [{sample: (text, key) for sample, _, text, key in batch} for batch, _ in islice(batches, epochs)]


def test_captions_and_crops_are_drawn_afresh_in_each_epoch_and_seed() -> None:
    (first, second), (other_seed,) = visits(0, 2), visits(1, 1)
    assert visits(0, 2) == [first, second]
    several = [sample for sample in range(500) if len(captions_of(sample)) == 4]
    for other in (second, other_seed):
        assert all(first[sample][1] != other[sample][1] for sample in range(500))
        same = np.mean([first[sample][0] == other[sample][0] for sample in several])
        assert 0.1 < same < 0.45  # a quarter, by chance


def test_every_caption_of_an_image_has_its_turn() -> None:
    drawn = visits(0, 40, samples=100)
    for sample in range(100):
        assert {epoch[sample][0] for epoch in drawn} == set(captions_of(sample))


def test_the_first_caption_can_be_asked_for() -> None:
    dataset = fake_dataset([50])
    dataset.captions = "first"
    for batch, _ in islice(stream(dataset, 25, 1), 4):
        assert all(caption == f"caption 0 of {sample}" for sample, _, caption, _ in batch)


def test_a_state_at_the_end_of_an_epoch_goes_on_with_the_next() -> None:
    dataset = fake_dataset([10])
    ends = next(stream(dataset, 4, 1, Position(2, 8)))
    begins = next(stream(dataset, 4, 1, Position(3, 0)))
    assert ends == begins


@pytest.mark.parametrize(("size", "world_size"), [(10, 3), (2, 4), (7, 2)])
def test_a_batch_that_does_not_divide_among_the_processes_is_refused(size: int, world_size: int) -> None:
    with pytest.raises(DataError, match=f"{size} does not divide among {world_size} processes"):
        TrainLoader(fake_dataset([50]), size, Rank(0, world_size))


def test_too_few_samples_for_one_batch_are_refused() -> None:
    with pytest.raises(DataError, match="nowhere: 50 samples do not fill one global batch of 51"):
        TrainLoader(fake_dataset([20, 30]), 51, Rank())
    TrainLoader(fake_dataset([20, 30]), 50, Rank())


@settings(max_examples=100, deadline=None)
@given(SIZES, st.integers(1, 9), st.integers(2, 12))
def test_evaluation_deals_every_sample_once_in_equally_many_batches(
    sizes: list[int], world_size: int, batch_size: int
) -> None:
    dataset = fake_dataset(sizes)
    if sum(sizes) < world_size:
        with pytest.raises(DataError, match=f"{sum(sizes)} samples for {world_size} processes"):
            evaluation_batches(dataset, batch_size, Rank(0, world_size))
        return
    ranks = [list(evaluation_batches(dataset, batch_size, Rank(rank, world_size))) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    samples = []
    for batch in (batch for batches in ranks for batch in batches):
        assert 1 <= len(batch.images) <= batch_size
        numbers = batch.samples.tolist()
        assert batch.image_ids.tolist() == [1000 + number for number in numbers]
        assert batch.captions == [caption for number in numbers for caption in captions_of(number)]
        owners = [place for place, number in enumerate(numbers) for _ in captions_of(number)]
        assert batch.caption_image.tolist() == owners
        assert torch.equal(batch.text, tokenize(batch.captions))
        samples.extend(numbers)
    assert samples == list(range(sum(sizes)))


# With files and loader workers


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, make_shards: Callable[..., Manifest]) -> Manifest:
    """Twenty-three samples in shards of 6, 6, 6 and 5."""
    return make_shards(tmp_path_factory.mktemp("loader") / "train", 23, per_shard=6)


def dataset_of(manifest: Manifest) -> ShardDataset:
    return ShardDataset(manifest, random_resized_crop(16, 0.3), tokenize, seed=4)


@pytest.mark.parametrize("world_size", [1, 2])
def test_loader_workers_change_nothing(manifest: Manifest, world_size: int) -> None:
    plain = list(islice(stream(dataset_of(manifest), 4, world_size), 12))
    assert list(islice(stream(dataset_of(manifest), 4, world_size, workers=2), 12)) == plain
    assert len({pixels for batch, _ in plain for *_, pixels in batch}) > 40, "the crops differ from visit to visit"


def test_what_workers_fetched_ahead_is_not_lost_on_resume(manifest: Manifest) -> None:
    whole = list(islice(stream(dataset_of(manifest), 6, 1), 9))
    before = list(islice(stream(dataset_of(manifest), 6, 2, workers=2), 4))
    after = list(islice(stream(dataset_of(manifest), 6, 3, before[-1][1], workers=2), 5))
    assert before + after == whole


def test_more_workers_than_shards_work(tmp_path: Path, make_shards: Callable[..., Manifest]) -> None:
    dataset = dataset_of(make_shards(tmp_path / "one", 5))
    assert list(islice(stream(dataset, 2, 2, workers=2), 4)) == list(islice(stream(dataset, 2, 1), 4))


def test_evaluation_with_workers_reads_the_same(manifest: Manifest) -> None:
    plain, with_workers = (list(evaluation_batches(dataset_of(manifest), 4, Rank(1, 2), n)) for n in (0, 2))
    assert len(plain) == len(with_workers) == 3
    for one, other in zip(plain, with_workers, strict=True):
        assert torch.equal(one.images, other.images)
        assert one.captions == other.captions
        assert one.samples.tolist() == other.samples.tolist()


def test_the_pictures_belong_to_their_captions(manifest: Manifest) -> None:
    dataset = dataset_of(manifest)
    for shard in range(4):
        for row in range(int(manifest.samples[shard])):
            number = int(manifest.first_sample[shard]) + row
            assert dataset.reader.read(shard, row).captions[0] == f"caption 0 of picture {number}"
    batch = next(evaluation_batches(dataset, 23, Rank()))
    assert batch.image_ids.tolist() == [100 + number for number in range(23)]
    assert batch.images.shape == (23, 16, 16, 3)
    assert batch.images.dtype == torch.uint8


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_sample_is_named_in_one_line(
    tmp_path: Path, make_shards: Callable[..., Manifest], workers: int
) -> None:
    manifest = make_shards(tmp_path / "train", 6)
    path, offset = manifest.shard_path(1), int(read_index(manifest, 1).offsets[0])
    data = bytearray(path.read_bytes())
    data[offset + 512 : offset + 1024] = bytes(512)  # the start of the image
    path.write_bytes(data)
    with pytest.raises(DataError) as raised:
        list(evaluation_batches(dataset_of(manifest), 4, Rank(), workers))
    message = str(raised.value)
    assert message.startswith(f"{path}: sample picture-0005: the image does not decode (")
    assert "\n" not in message
