"""Towers that momentum encoders share with those that are trained: run once, without weights of their own."""

from typing import Any

import pytest
import torch
from torch import nn

from model.config import LossConfig, ModelConfig
from model.encoders import DualEncoder
from model.frameworks import Framework
from model.memory.momentum import MomentumCopy
from model.towers.shared import SharedTower
from tests.model.test_methods import LOSS, MODEL, Inputs, batch, run

FROZEN = {"image": {"freeze": "all"}, "text": {"freeze": "all"}}


def framework_of(towers: str = "own", autocast: torch.dtype | None = None, **changes: Any) -> Framework:
    torch.manual_seed(0)
    model = ModelConfig.model_validate({**MODEL, "framework": "aahr", **changes})
    loss = LossConfig.model_validate({**LOSS, "momentum": {"decay": 0.5, "towers": towers}})
    encoders = DualEncoder(model)
    return Framework(encoders, model, loss, steps_per_epoch=4, total_steps=20, seed=5, autocast=autocast).train()


class Calls:
    def __init__(self, *modules: nn.Module) -> None:
        self.count = 0
        for module in modules:
            module.register_forward_hook(self._count)

    def _count(self, *_hooked: Any) -> None:
        self.count += 1


def keys_of(framework: Framework, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    keys = framework.encode(*inputs[:4])[1]
    assert keys is not None
    return keys[0]


def momentum_of(framework: Framework) -> DualEncoder:
    assert framework.momentum is not None
    return framework.momentum.module


def test_frozen_towers_run_once_and_give_the_keys_of_a_copy_of_their_own() -> None:
    framework = framework_of(**FROZEN)
    run(framework, 3)
    assert isinstance(momentum_of(framework).image_tower, SharedTower)
    assert not [name for name in framework.state_dict() if name.startswith("momentum.module.image_tower")]
    calls = Calls(framework.encoders.image_tower, framework.encoders.text_tower)
    framework(*batch(3), 3)
    assert calls.count == 2

    apart = framework_of(**FROZEN)
    apart.momentum = MomentumCopy(apart.encoders)
    run(apart, 3)
    assert not isinstance(momentum_of(apart).image_tower, SharedTower)
    for ours, theirs in zip(keys_of(framework, batch(4)), keys_of(apart, batch(4)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_of_towers_one_may_be_frozen() -> None:
    framework = framework_of(image={"freeze": "all"})
    assert isinstance(momentum_of(framework).image_tower, SharedTower)
    assert not isinstance(momentum_of(framework).text_tower, SharedTower)
    run(framework, 2)
    partly = framework_of(text={"freeze": 0})
    assert not isinstance(momentum_of(partly).text_tower, SharedTower)


def test_shared_towers_that_are_trained_leave_the_average_to_the_heads() -> None:
    framework = framework_of("shared")
    before = {name: value.clone() for name, value in momentum_of(framework).state_dict().items()}
    run(framework, 3)
    after = momentum_of(framework).state_dict()
    assert {name.partition(".")[0] for name in after} == {"image_head", "text_head"}
    assert any(not torch.equal(value, before[name]) for name, value in after.items())
    heads = momentum_of(framework).image_head
    images, *_ = inputs = batch(3)
    with torch.no_grad():
        expected = heads(framework.encoders.image_tower(images)).embedding
    torch.testing.assert_close(keys_of(framework, inputs)[0], expected)


def test_a_shared_tower_remembers_what_it_saw_last_for_one_use() -> None:
    encoders = framework_of().encoders.eval()
    shared = SharedTower(encoders.image_tower)
    first, second = batch(1)[0], batch(2)[0]
    calls = Calls(encoders.image_tower)
    seen = encoders.image_tower(first)
    remembered = shared(first)
    assert torch.equal(remembered.pooled, seen.pooled)
    assert not remembered.pooled.requires_grad
    assert calls.count == 1
    torch.testing.assert_close(shared(first).tokens, remembered.tokens)
    assert calls.count == 2
    encoders.image_tower(first)
    other = shared(second)
    assert calls.count == 4
    torch.testing.assert_close(other.pooled, encoders.image_tower(second).pooled)
    assert list(shared.parameters()) == []


@pytest.mark.parametrize("towers", ["own", "shared"])
def test_nothing_flows_back_through_the_keys(towers: str) -> None:
    framework = framework_of(towers)
    assert not any(key.requires_grad for key in keys_of(framework, batch(0)))


def test_bfloat16_is_for_the_momentum_encoders_alone_where_it_is_asked_for() -> None:
    plain = framework_of()
    reduced = framework_of()
    reduced.loss = LossConfig.model_validate({**LOSS, "momentum": {"precision": "bfloat16"}})
    inputs = batch(0)
    for mine, theirs in zip(keys_of(reduced, inputs), keys_of(plain, inputs), strict=True):
        assert mine.dtype == torch.float32
        assert not torch.equal(mine, theirs)
        assert ((mine * theirs).sum(dim=1) > 0.999).all()
    for mine, theirs in zip(
        reduced.encode(*inputs[:4])[0].kinds[0], plain.encode(*inputs[:4])[0].kinds[0], strict=True
    ):
        assert torch.equal(mine, theirs)
