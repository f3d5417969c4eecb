"""Which checkpoint a run goes on from, and what becomes of damaged ones."""

import errno
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.trainer.saving import alone
from trainer.config import Recipe
from trainer.distributed import World
from trainer.errors import RunError
from trainer.plan import Plan, make_plan
from trainer.resume import settle_resume


@pytest.fixture(scope="module", autouse=True)
def group() -> Iterator[None]:
    with alone():
        yield


@pytest.fixture
def recipe(demo: Path, tmp_path: Path, tiny_recipe: Callable[..., Recipe]) -> Recipe:
    data = {"train": str(demo / "train"), "val": str(demo / "val")}
    return tiny_recipe(run={"dir": str(tmp_path)}, data=data)


def damage(checkpoint: Path, name: str) -> None:
    content = bytearray((checkpoint / name).read_bytes())
    content[len(content) // 2] ^= 1
    (checkpoint / name).write_bytes(content)


def resumed(plan: Plan) -> int | None:
    return plan.resume and plan.resume.step


@pytest.fixture
def run(recipe: Recipe, tmp_path: Path, add_checkpoint: Callable[..., Path]) -> Path:
    for step in (1, 2, 3):
        add_checkpoint(tmp_path, step, recipe=recipe)
    return tmp_path / "checkpoints"


def names(run: Path) -> list[str]:
    return sorted(path.name for path in run.iterdir())


def test_a_whole_checkpoint_changes_nothing(run: Path, recipe: Recipe) -> None:
    plan = make_plan(recipe, 1)
    assert resumed(plan) == 3
    settled, notes = settle_resume(plan, World())
    assert settled is plan
    assert notes == []


@pytest.mark.parametrize("name", ["weights.safetensors", "recipe.yaml", "state.json"])
def test_a_damaged_checkpoint_is_named_and_set_aside_and_the_one_before_is_used(
    run: Path, recipe: Recipe, name: str
) -> None:
    damage(run / "step-00000003", name)
    plan, notes = settle_resume(make_plan(recipe, 1), World())
    assert resumed(plan) == 2
    assert len(notes) == 1
    assert f"step-00000003/{name}: " in notes[0]
    assert notes[0].endswith("; set aside as damaged-step-00000003")
    assert names(run) == ["damaged-step-00000003", "step-00000001", "step-00000002"]


def test_a_disk_that_does_not_answer_is_no_damage(
    run: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, before = make_plan(recipe, 1), names(run)

    def fail(*_arguments: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(hashlib, "file_digest", fail)
    with pytest.raises(
        RunError, match=r"step-0000000\d/.*: cannot be read \(Input/output error\); nothing was changed"
    ):
        settle_resume(plan, World())
    assert names(run) == before


def test_a_plan_goes_on_from_the_checkpoint_that_was_agreed_on(run: Path, recipe: Recipe) -> None:
    assert resumed(make_plan(recipe, 1, run / "step-00000002")) == 2


def test_several_damaged_ones_are_all_set_aside(run: Path, recipe: Recipe) -> None:
    damage(run / "step-00000003", "weights.safetensors")
    (run / "step-00000002/recipe.yaml").unlink()
    plan, notes = settle_resume(make_plan(recipe, 1), World())
    assert resumed(plan) == 1
    assert len(notes) == 2
    assert names(run) == ["damaged-step-00000002", "damaged-step-00000003", "step-00000001"]


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(run: Path, recipe: Recipe) -> None:
    plan = make_plan(recipe, 1)
    for checkpoint in run.iterdir():
        damage(checkpoint, "weights.safetensors")
    with pytest.raises(RunError, match=r"no checkpoint is whole; .*step-00000001/weights\.safetensors: damaged"):
        settle_resume(plan, World())
    assert names(run) == [f"damaged-step-{step:08d}" for step in (1, 2, 3)]
    with pytest.raises(RunError, match="no checkpoint is whole"):
        make_plan(recipe, 1)


def test_what_the_older_owner_saved_since_the_plan_was_made_is_gone_on_from(
    run: Path, recipe: Recipe, tmp_path: Path, add_checkpoint: Callable[..., Path]
) -> None:
    plan = make_plan(recipe, 1)
    add_checkpoint(tmp_path, 4, recipe=recipe)
    settled, notes = settle_resume(plan, World())
    assert resumed(settled) == 4
    assert notes == []
