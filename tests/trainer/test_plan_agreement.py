"""What the ranks of a run compare before they begin."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from shards.convert import Options, write_split
from shards.demo.source import demo_records
from trainer.config import Recipe
from trainer.distributed import World
from trainer.errors import RunError
from trainer.plan import Plan, make_plan
from trainer.plan_agreement import agree_on_plan
from trainer.preemption import StopRequest


def seen_together(plans: list[Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    """`agree_on_plan` as the first of several ranks calls it."""
    views: list[Any] = []
    for plan in plans:
        monkeypatch.setattr(dist, "all_gather_object", lambda _others, own: views.append(own))
        agree_on_plan(plan, World(0, 0), StopRequest())

    def gather(others: list[Any], _own: Any) -> None:
        others[:] = views

    monkeypatch.setattr(dist, "all_gather_object", gather)
    assert not agree_on_plan(plans[0], World(0, len(plans)), StopRequest())


@pytest.mark.parametrize("split", ["train", "val"])
def test_ranks_whose_folders_hold_other_samples_do_not_begin(
    demo: Path, tmp_path: Path, tiny_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    """One path, as two nodes see it: equally many samples, but others."""
    here = tmp_path / "here"
    shutil.copytree(demo, here)
    data = {"train": str(here / "train"), "val": str(here / "val")}
    recipe = tiny_recipe(run={"dir": str(tmp_path / "run")}, data=data)
    plans = [make_plan(recipe, 2) for _ in range(2)]
    seen_together(plans, monkeypatch)
    shutil.rmtree(here / split)
    records = demo_records(split, {"train": 20, "val": 6}[split], 2)
    write_split(records, here / split, dataset="demo", split=split, options=Options(samples_per_shard=7))
    plans[1] = make_plan(recipe, 2)
    with pytest.raises(RunError, match="process 1 sees another run than process 0"):
        seen_together(plans, monkeypatch)
