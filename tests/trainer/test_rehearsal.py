"""`itm train --dry-run`: what training would run into before its first step, and nothing written."""

from collections.abc import Callable
from pathlib import Path

import pytest

from model.errors import ModelError
from trainer.config import Recipe
from trainer.distributed import World
from trainer.plan import make_plan
from trainer.rehearsal import rehearse

Rehearse = Callable[..., list[str]]


@pytest.fixture
def rehearsed(demo: Path, tmp_path: Path, tiny_recipe: Callable[..., Recipe]) -> Rehearse:
    """Rehearses a run on the demo data with a `model` section."""

    def run(**model: object) -> list[str]:
        recipe = tiny_recipe(run={"dir": str(tmp_path / "run")}, data={"train": str(demo / "train")}, model=model)
        return rehearse(make_plan(recipe, 2), World())

    return run


def test_what_would_run_is_built_and_nothing_is_written(rehearsed: Rehearse, tmp_path: Path) -> None:
    assert rehearsed() == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"pretrained": "nothere.pt"}, r"^model\.pretrained 'nothere\.pt'"),
        ({"image": {"freeze": 99}}, r"^model\.image\.freeze: 99"),
        ({"architecture": "no-such"}, r"^model\.architecture"),
    ],
)
def test_what_training_would_stop_at_is_told(
    rehearsed: Rehearse, tmp_path: Path, model: dict, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        rehearsed(**model)
    assert list(tmp_path.iterdir()) == []
