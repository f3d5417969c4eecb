"""What a loader tells its readers ahead of the reads."""

from itertools import islice

import pytest

from shards import read_ahead
from shards.loader import Rank, TrainLoader
from shards.training import TrainDataset
from tests.shards.fakes import FakeReader, fake_training


def reader_of(dataset: TrainDataset, place: int = 0) -> FakeReader:
    reader = dataset.loaders[place].reader
    assert isinstance(reader, FakeReader)
    return reader


def told_by_epoch(dataset: TrainDataset, size: int, epochs: int) -> list[list[tuple[int, int, int]]]:
    """What the first data set's reader is told in each epoch of `size` visits a batch."""
    loader, told = TrainLoader(dataset, size, Rank()), []
    stream, reader = iter(loader), reader_of(dataset)
    for _ in range(epochs):
        list(islice(stream, dataset.training_set.num_visits // size))
        told.append(reader.told)
        reader.told = []
    return told


def test_every_epoch_tells_each_of_its_runs_once() -> None:
    everything = [(shard, row, row + 1) for shard, size in enumerate((40, 24)) for row in range(size)]
    for told in told_by_epoch(fake_training([40, 24]), 8, 3):
        assert sorted(told) == everything


def test_a_data_set_that_comes_twice_an_epoch_is_told_twice() -> None:
    (told,) = told_by_epoch(fake_training([24], [16], weights=[2.0, 1.0]), 8, 1)
    assert sorted(told) == sorted(2 * [(0, row, row + 1) for row in range(24)])


def test_what_a_reader_does_not_take_is_told_again() -> None:
    dataset = fake_training([64])
    reader = reader_of(dataset)
    reader.takes_hints = False
    stream = iter(TrainLoader(dataset, 8, Rank()))
    next(stream)
    first, reader.told, reader.takes_hints = reader.told, [], True
    next(stream)
    assert set(first) & set(reader.told), "batches that are yet to come"
    assert len(reader.told) == len(set(reader.told))


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_ahead, "MOST_TOLD", 30)
    dataset = fake_training([64])
    told_by_epoch(dataset, 8, 2)
    assert len(dataset.ahead._told) == 30
