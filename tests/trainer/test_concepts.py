"""Which vocabulary a run uses: its own copy, a fitting file, or one clear error."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.errors import ModelError
from trainer.checkpoint import CONCEPTS
from trainer.checkpoint_folder import find_checkpoint
from trainer.concepts import settle_concepts
from trainer.config import Recipe
from trainer.errors import RunError

MakeRecipe = Callable[..., Recipe]


def vocabulary(path: Path, *words: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    together = [[0] * len(words) for _ in words]
    listed = [{"word": word, "count": 4} for word in words]
    content = {"format_version": 1, "graph": {}, "concepts": listed, "co_occurrence": together}
    path.write_text(json.dumps(content))
    return path


def with_file(recipe: MakeRecipe, run: Path, concepts: Path | None, **more: Any) -> Recipe:
    model = {"framework": "amsps", "consensus": {"concepts": str(concepts) if concepts else None}}
    return recipe(run={"dir": str(run)}, model=model, **more)


@pytest.fixture
def trained(tmp_path: Path, tiny_recipe: MakeRecipe, add_checkpoint: Callable[..., Path]) -> Path:
    """A run with two concepts, and its checkpoint's and its own copy of them."""
    run, concepts = tmp_path / "run", vocabulary(tmp_path / "c.json", "dog", "cat")
    step = add_checkpoint(run, 3, recipe=with_file(tiny_recipe, run, concepts))
    for copy in (step / CONCEPTS, run / CONCEPTS):
        shutil.copyfile(concepts, copy)
    return run


def test_a_new_run_takes_the_file_that_it_is_given(tmp_path: Path, tiny_recipe: MakeRecipe) -> None:
    recipe = with_file(tiny_recipe, tmp_path / "run", vocabulary(tmp_path / "c.json", "dog"))
    assert settle_concepts(recipe, None, None) is recipe
    with pytest.raises(ModelError, match=r"nowhere.json: cannot be read"):
        settle_concepts(with_file(tiny_recipe, tmp_path / "run", tmp_path / "nowhere.json"), None, None)


def test_a_run_goes_on_with_its_own_copy_once_the_file_is_gone(
    trained: Path, tmp_path: Path, tiny_recipe: MakeRecipe
) -> None:
    (tmp_path / "c.json").unlink()
    recipe = settle_concepts(with_file(tiny_recipe, trained, tmp_path / "c.json"), find_checkpoint(trained), None)
    assert recipe.model.consensus.concepts == str(trained / CONCEPTS)


@pytest.mark.parametrize("words", [("dog", "cow"), ("dog", "cat", "cow"), ("cat", "dog")])
def test_another_vocabulary_is_refused(
    trained: Path, tmp_path: Path, tiny_recipe: MakeRecipe, words: tuple[str, ...]
) -> None:
    other, checkpoint = vocabulary(tmp_path / "other.json", *words), find_checkpoint(trained)
    for run, pair in ((trained, (checkpoint, None)), (tmp_path / "new", (None, checkpoint))):
        with pytest.raises(
            RunError, match=r"other\.json: other concepts than those that .*; give .*concepts\.json"
        ):
            settle_concepts(with_file(tiny_recipe, run, other), *pair)


def test_a_resumed_run_cannot_take_up_or_drop_concepts(trained: Path, tiny_recipe: MakeRecipe) -> None:
    with pytest.raises(RunError, match="was trained with concepts; resume with the same"):
        settle_concepts(with_file(tiny_recipe, trained, None), find_checkpoint(trained), None)


def test_fine_tuning_may_take_up_or_drop_concepts(trained: Path, tmp_path: Path, tiny_recipe: MakeRecipe) -> None:
    without = with_file(tiny_recipe, tmp_path / "new", None)
    assert settle_concepts(without, None, find_checkpoint(trained)) is without
