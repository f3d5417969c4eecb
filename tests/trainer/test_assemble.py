"""What a rank trains with, from its plan."""

from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.assemble import assemble_framework
from trainer.config import Recipe
from trainer.errors import RunError
from trainer.plan import make_plan


@pytest.mark.parametrize(("size", "refused"), [(4, True), (None, False)])
def test_encoders_that_are_frozen_whole_take_no_micro_batches(
    demo: Path, tmp_path: Path, tiny_recipe: Callable[..., Recipe], size: int | None, refused: bool
) -> None:
    frozen = {"framework": "clip", "image": {"freeze": "all"}, "text": {"freeze": "all"}}
    recipe = tiny_recipe(
        run={"dir": str(tmp_path / "run")},
        data={"train": str(demo / "train")},
        model=frozen,
        engine={"micro_batch_size": size},
    )
    plan = make_plan(recipe, 1)
    if refused:
        with pytest.raises(RunError, match=r"engine\.micro_batch_size=4: the encoders are frozen whole"):
            assemble_framework(plan)
    else:
        framework, _ = assemble_framework(plan)
        assert not any(weight.requires_grad for weight in framework.encoders.parameters())
