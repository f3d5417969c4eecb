"""How the order reads shards, and what a worker gives."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shards.manifest import Manifest
from shards.training import Part, TrainingSet
from trainer.config import Recipe
from trainer.forecast import data_supply
from trainer.forecast.data_supply import images_per_second, reading, workers_needed


def test_a_batch_draws_on_the_shards_as_at_random(
    tmp_path: Path, make_shards: Callable[..., Manifest], tiny_recipe: Callable[..., Recipe]
) -> None:
    manifest = make_shards(tmp_path / "train", samples=60, per_shard=5)
    found = reading(tiny_recipe(data={"workers": 2}), TrainingSet((Part(manifest),)), 3)
    assert found.shards == 12
    assert found.shards_a_worker == 12 / 6
    assert found.bytes_a_shard == pytest.approx(manifest.bytes.mean())
    assert found.shards_by_chance == pytest.approx(12 * (1 - (11 / 12) ** 8))
    assert 1 < found.shards_a_batch <= 8
    # so few samples are permuted one by one
    assert found.run_length == 1
    assert found.lanes_a_process == pytest.approx(64 / 3)


def test_the_loader_is_timed_on_the_data(
    demo: Path, tiny_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    from shards.manifest import read_manifest

    monkeypatch.setattr(data_supply, "MEASURED_SECONDS", 0.05)
    train = TrainingSet((Part(read_manifest(demo / "train")),))
    rate: Any = images_per_second(tiny_recipe(), train)
    assert rate > 1


def test_workers_that_keep_up() -> None:
    assert workers_needed(8000, gpus=8, rate=400) == 3
    assert workers_needed(80, gpus=8, rate=400) == 1
