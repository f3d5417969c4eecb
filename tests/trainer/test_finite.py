"""A value that is not finite: told with shard and key of its samples."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from shards.manifest import Manifest, read_index
from shards.training import Part, TrainingSet
from trainer.distributed import World
from trainer.errors import RunError
from trainer.finite import FiniteCheck, any_not_finite, name_samples

MakeShards = Callable[..., Manifest]
NO, YES = torch.tensor(False), torch.tensor(True)


def test_samples_of_a_mixture_are_named_by_shard_and_key(tmp_path: Path, make_shards: MakeShards) -> None:
    parts = [Part(make_shards(tmp_path / "a", 7)), Part(make_shards(tmp_path / "b", 12))]
    named = name_samples(TrainingSet(tuple(parts)), [0, 6, 7, 12, 18])
    places = [("a", 0, 0), ("a", 1, 1), ("b", 0, 0), ("b", 1, 0), ("b", 2, 1)]
    assert [one["sample"] for one in named] == [0, 6, 7, 12, 18]
    for one, (folder, shard, row) in zip(named, places, strict=True):
        manifest = parts[folder == "b"].manifest
        assert one["shard"] == manifest.shard_location(shard)
        assert (one["row"], one["key"]) == (row, read_index(manifest, shard).key(row))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_any_value_of_a_step_counts(bad: float) -> None:
    fine = {"loss": torch.tensor(1.0), "base": torch.tensor(3e38)}
    assert not any_not_finite(fine)
    assert any_not_finite(fine | {"relations": torch.tensor(bad)})


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "all_gather_object", lambda everyone, own: everyone.__setitem__(0, own))


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize(("loss", "gradients", "what"), [(YES, YES, "the loss is"), (NO, YES, "the gradients are")])
def test_the_first_bad_step_is_told_with_its_samples(
    tmp_path: Path, make_shards: MakeShards, loss: torch.Tensor, gradients: torch.Tensor, what: str
) -> None:
    check = FiniteCheck(tmp_path / "run", TrainingSet((Part(make_shards(tmp_path / "a", 9)),)), World())
    check.add(11, torch.tensor([0, 1]), NO, NO)
    assert not check.found(wait=True)
    check.add(12, torch.tensor([8, 3]), loss, gradients)
    check.add(13, torch.tensor([5, 6]), YES, YES)
    assert check.found(wait=False)
    with pytest.raises(RunError) as error:
        check.stop("mend it")
    path = tmp_path / "run/nonfinite/step-00000012.json"
    assert str(error.value) == f"step 12: {what} not finite; its samples are listed in {path}; mend it"
    told = json.loads(path.read_text())
    assert (told["step"], told["ranks"]) == (12, [0])
    assert [one["sample"] for one in told["samples"]] == [8, 3]
    assert {one["rank"] for one in told["samples"]} == {0}
