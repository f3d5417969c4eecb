"""The quarantine of one process; over several: tests/end_to_end/test_bad_input.py."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from shards.batch import Undecodable
from trainer.distributed import World
from trainer.errors import RunError
from trainer.quarantine import Quarantine


@pytest.fixture(autouse=True)
def group(tmp_path: Path) -> Iterator[None]:
    """A group of one process, for the collectives."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def broken(*samples: int) -> list[Undecodable]:
    return [Undecodable(sample, f"shard: sample {sample}: broken") for sample in samples]


def listed(folder: Path) -> list[int]:
    return [json.loads(line)["sample"] for line in (folder / "quarantine.jsonl").read_text().splitlines()]


def test_each_sample_is_listed_once_however_often_it_is_met(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path, 0.5, World())
    quarantine.add(broken(3, 1, 3))
    assert quarantine.settle(100) == 2
    quarantine.add(broken(1, 8))
    assert quarantine.settle(200) == 3
    assert sorted(listed(tmp_path)) == [1, 3, 8]


def test_without_a_fault_no_file_is_written(tmp_path: Path) -> None:
    assert Quarantine(tmp_path, 0.0, World()).settle(10**6) == 0
    assert not (tmp_path / "quarantine.jsonl").exists()


def test_a_resumed_run_knows_the_list_and_mends_a_line_cut_short(tmp_path: Path) -> None:
    first = Quarantine(tmp_path, 0.5, World())
    first.add(broken(3, 4))
    first.settle(100)
    with (tmp_path / "quarantine.jsonl").open("a") as stream:
        stream.write('{"sample": 5, "rea')
    resumed = Quarantine(tmp_path, 0.5, World())
    resumed.add(broken(4, 6))
    assert resumed.settle(100) == 3
    assert listed(tmp_path) == [3, 4, 6]


def test_too_many_end_the_run(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path, 0.01, World())
    quarantine.add(broken(*range(10)))
    assert quarantine.settle(64) == 10  # as if 1,000 had been read: an early fault stops no run
    quarantine.add(broken(10))
    with pytest.raises(RunError, match=r"11 of 128 samples .* more than data\.max_undecodable=0\.01"):
        quarantine.settle(128)
    assert len(listed(tmp_path)) == 11


def test_a_resumed_run_is_stopped_by_the_samples_that_stopped_it_before(tmp_path: Path) -> None:
    for _ in range(3):
        quarantine = Quarantine(tmp_path, 0.01, World())
        quarantine.add(broken(*range(300)))
        with pytest.raises(RunError, match=r"300 of 1,000 samples"):
            quarantine.settle(1000)
    assert listed(tmp_path) == list(range(300))


def test_a_resumed_run_counts_each_sample_once_in_its_later_epochs(tmp_path: Path) -> None:
    for _ in range(2):
        quarantine = Quarantine(tmp_path, 0.01, World())
        for epoch in range(1, 4):
            quarantine.add(broken(*range(10)))
            assert quarantine.settle(1000 * epoch) == 10


def test_the_limit_is_a_share_of_what_was_read(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path, 0.01, World())
    quarantine.add(broken(*range(100)))
    assert quarantine.settle(10_000) == 100
