"""A step without storage holds, computes and exchanges what a real one does."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from model.errors import ModelError
from model.frameworks import Framework
from tests.trainer.forecast.recipes import STEPS, drawn, whole_recipe
from trainer.config import Recipe
from trainer.engine import build_encoders, build_framework
from trainer.forecast.live_bytes import LiveBytes
from trainer.forecast.step import Measured, inputs_of, measure_step
from trainer.gradient_cache import cached_gradients


def real_framework(recipe: Recipe) -> Framework:
    return build_framework(build_encoders(recipe.model, 0), recipe, STEPS, STEPS).train()


def plain_engine(framework: Framework) -> Any:
    """What gradient caching asks of an engine, with every micro-batch run."""

    class Engine(SimpleNamespace):
        def __call__(self, *inputs: Any, part: str = "step") -> Any:
            return framework(*inputs, part=part)

    return Engine(
        zero_optimization_partition_gradients=lambda: False,
        set_gradient_accumulation_boundary=lambda _boundary: None,
        backward=lambda loss: loss.backward(),
    )


def measured(recipe: Recipe, processes: int = 1) -> Measured:
    return measure_step(recipe, processes, STEPS, STEPS)


def test_towers_that_look_at_values_cannot_be_forecast(monkeypatch: pytest.MonkeyPatch) -> None:
    def look(_engine: Any, framework: Framework, *_others: Any) -> None:
        next(framework.parameters()).sum().item()

    monkeypatch.setattr("trainer.forecast.step.cached_gradients", look)
    with pytest.raises(ModelError, match="nothing can be forecast of this model"):
        measured(whole_recipe())


@pytest.mark.parametrize("micro_batch_size", [None, 2])
def test_as_many_bytes_are_alive_as_in_a_real_step(micro_batch_size: int | None) -> None:
    recipe = whole_recipe(micro_batch_size=micro_batch_size)
    framework = real_framework(recipe)
    inputs = drawn(inputs_of(recipe, 0), 8)
    with LiveBytes(framework) as live:
        batch = tuple(None if one is None else one.clone() for one in inputs)  # as if it came to the device
        cached_gradients(
            plain_engine(framework), framework, batch, STEPS - 1, micro_batch_size or 8, lambda _: None
        )
        framework.advance(STEPS - 1)
    step = measured(recipe).step
    assert live.before.temporary > 8 * 32 * 32 * 3
    assert abs(step.before.temporary / live.before.temporary - 1) < 0.01
    assert abs(step.after.both / live.after.both - 1) < 0.01


def test_what_autograd_saves_is_what_is_alive_after_the_forward_pass() -> None:
    recipe = whole_recipe()
    framework = real_framework(recipe)
    weights = {one.untyped_storage().data_ptr() for one in (*framework.parameters(), *framework.buffers())}
    inputs, saved = drawn(inputs_of(recipe, 0), 8), {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        losses = framework(*inputs, STEPS - 1)
    held = sum(saved.values())
    assert losses["loss"].requires_grad
    predicted = measured(recipe).step.before.temporary
    assert held < predicted < 2 * held, "beside it live the inputs, the losses' own work and the momentum encoders'"


def test_smaller_micro_batches_and_checkpointing_hold_less_and_compute_more() -> None:
    recipe = whole_recipe(batch=64)
    again = {"gradient_checkpointing": True}
    model = recipe.model.model_copy(
        update={
            "image": recipe.model.image.model_copy(update=again),
            "text": recipe.model.text.model_copy(update=again),
        }
    )
    whole = measured(recipe).step
    cached = measured(whole_recipe(batch=64, micro_batch_size=8)).step
    checkpointed = measured(recipe.model_copy(update={"model": model})).step
    for cheaper in (cached, checkpointed):
        assert cheaper.before.temporary < whole.before.temporary
        assert cheaper.flops > whole.flops
        assert cheaper.useful_flops == whole.useful_flops
    assert (whole.micro_batches, cached.micro_batches) == (1, 8)


def test_arithmetic_counts_all_micro_batches() -> None:
    # of 8, those after the first are encoded twice, and the momentum encoders' once: so are those of 4 and 2
    parts = {size: measured(whole_recipe(batch=16, micro_batch_size=size)).step.flops for size in (16, 8, 4)}
    once = parts[8] - parts[16]
    assert parts[4] - parts[16] == pytest.approx(1.5 * once, rel=1e-6)


@pytest.mark.parametrize(("framework", "momentum"), [("aahr", True), ("clip", False)])
def test_exchanges_are_those_of_the_formula(framework: str, momentum: bool) -> None:
    recipe = whole_recipe(batch=16)
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"framework": framework})})
    exchanges = measured(recipe, processes=4).step.exchanges
    width = 32  # docs/scaling.md, k = 1; the towers of itm-tiny are as wide
    assert exchanges["all-gather"] == (1, 4 * 16 * (2 * width * (1 + momentum) + 3))
    assert exchanges["reduce-scatter"] == (1, 8 * 16 * width)
    assert exchanges.get("all-reduce") == ((1, 4 * width) if momentum else None)


def test_a_transformer_and_regions_run(tmp_path: Path) -> None:
    from tests.model.hub import save_bert

    recipe = whole_recipe()
    model = {
        "embed_dim": 32,
        "norm_group": 2,
        "architecture": "itm-tiny",
        "aahr": {"fragment_heads": 2, "pooling_heads": 2},
        "image": {"inputs": "pixels+regions", "region_width": 24},
        "text": {
            "towers": "clip+transformer",
            "transformer": {"name": str(save_bert(tmp_path / "bert")), "max_length": 12},
        },
    }
    found = measured(Recipe.model_validate(recipe.model_dump() | {"model": model}))
    assert found.inputs.regions == 36
    assert found.step.before.temporary > measured(recipe).step.before.temporary
