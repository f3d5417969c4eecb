"""Which settings are said to have no effect, and which are not."""

from collections.abc import Callable
from typing import Any

import pytest

from trainer.config import Recipe
from trainer.idle import idle_settings

CONCEPTS = {"consensus": {"concepts": "c.json"}}
REGIONS = {"image": {"inputs": "regions"}}
TRANSFORMER = {"text": {"towers": "transformer"}}
WEIGHTS = {"text": {"transformer": {"weights": "random"}}}
PRETRAINED = {"pretrained": "openai"}


@pytest.mark.parametrize(
    ("model", "fine_tunes", "said"),
    [
        (
            {"framework": "clip"} | CONCEPTS,
            False,
            ["model.consensus.concepts has no effect with model.framework=clip"],
        ),
        ({"framework": "amsps"} | CONCEPTS, False, []),
        (PRETRAINED, False, []),
        (PRETRAINED, True, ["model.pretrained has no effect with run.init_from, whose weights are taken"]),
        (PRETRAINED | REGIONS, False, []),
        (PRETRAINED | TRANSFORMER, False, []),
        (
            PRETRAINED | REGIONS | TRANSFORMER,
            False,
            ["model.pretrained has no effect with model.image.inputs=regions and model.text.towers=transformer"],
        ),
        (REGIONS | TRANSFORMER, True, []),
        (WEIGHTS, False, ["model.text.transformer.weights has no effect with model.text.towers=clip"]),
        ({"text": {"towers": "clip+transformer", "transformer": {"weights": "random"}}}, False, []),
    ],
)
def test_only_what_is_not_read_is_told(
    tiny_recipe: Callable[..., Recipe], model: dict[str, Any], fine_tunes: bool, said: list[str]
) -> None:
    assert idle_settings(tiny_recipe(model=model), fine_tunes) == said
