from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from model.config import LossConfig, ModelConfig
from model.encoders import DualEncoder
from model.frameworks import Framework
from trainer.config import OptimizerConfig
from trainer.engine import set_learning_rate
from trainer.parameter_groups import layer_distances, parameter_groups

CONFIG = OptimizerConfig(lr=0.5, weight_decay=0.25, tower_lr_scale=0.1)


@pytest.fixture(scope="module")
def framework() -> Framework:
    config = ModelConfig.model_validate(
        {"architecture": "itm-tiny", "embed_dim": 16, "aahr": {"fragment_heads": 2, "pooling_heads": 2}}
    )
    loss = LossConfig.model_validate({"relations": {"heads": 2}})
    return Framework(DualEncoder(config), config, loss, steps_per_epoch=1, total_steps=1)


def test_every_trainable_parameter_stands_in_one_group(framework: Framework) -> None:
    groups = parameter_groups(framework.named_parameters(), CONFIG)
    members = Counter(id(parameter) for group in groups for parameter in group["params"])
    trained = (parameter for name, parameter in framework.named_parameters() if not name.startswith("momentum."))
    assert members == Counter(map(id, trained))
    assert len(groups) == 4


def test_towers_are_slower_and_vectors_do_not_decay(framework: Framework) -> None:
    groups = parameter_groups(framework.named_parameters(), CONFIG)
    settings = {id(p): (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    for name, parameter in framework.named_parameters():
        if name.startswith("momentum."):
            continue
        scale = 0.1 if "_tower." in name else 1.0
        assert settings[id(parameter)] == (scale, 0.0 if parameter.ndim == 1 else 0.25), name
    assert {group["lr"] for group in groups} == {0.5}


@pytest.mark.parametrize(
    ("layer", "decaying"),
    [
        (nn.LayerNorm(4), set()),
        (nn.BatchNorm1d(4), set()),
        (nn.Linear(4, 4), {"weight"}),
        (nn.Conv2d(3, 4, 2), {"weight"}),
        (nn.MultiheadAttention(4, 2), {"in_proj_weight", "out_proj.weight"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_norms_and_biases_do_not_decay(layer: nn.Module, decaying: set[str]) -> None:
    names = {id(parameter): name for name, parameter in layer.named_parameters()}
    groups = parameter_groups(layer.named_parameters(), CONFIG)
    assert {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]} == decaying


def test_frozen_parameters_are_left_out() -> None:
    layer = nn.Linear(3, 3)
    layer.weight.requires_grad_(False)
    (group,) = parameter_groups(layer.named_parameters(), CONFIG)
    assert [parameter is layer.bias for parameter in group["params"]] == [True]
    layer.bias.requires_grad_(False)
    assert parameter_groups(layer.named_parameters(), CONFIG) == []


def test_a_tower_rate_of_zero_leaves_the_towers_as_they_are(framework: Framework) -> None:
    config = CONFIG.model_copy(update={"tower_lr_scale": 0.0})
    groups = parameter_groups(framework.named_parameters(), config)
    for group in groups:
        group["lr"] *= group["lr_scale"]
    before = {name: parameter.detach().clone() for name, parameter in framework.named_parameters()}
    optimizer = torch.optim.AdamW(groups)
    for parameter in framework.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in framework.named_parameters():
        if name.startswith("momentum."):
            continue
        assert torch.equal(parameter, before[name]) == ("_tower." in name), name
        parameter.grad = None


def test_layers_learn_the_slower_the_farther_they_are_from_the_end() -> None:
    config = CONFIG.model_copy(update={"layer_decay": 0.5})
    encoders = DualEncoder(ModelConfig.model_validate({"architecture": "itm-mini", "embed_dim": 16}))
    parts = nn.ModuleDict({"encoders": encoders})
    groups = parameter_groups(parts.named_parameters(), config, layer_distances(parts))
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    named = dict(parts.named_parameters())
    blocks = len({name.split(".")[5] for name in named if ".visual.transformer.resblocks." in name})
    assert blocks > 1
    for name, halvings in (
        ("image_tower.visual.proj", 0),
        (f"image_tower.visual.transformer.resblocks.{blocks - 1}.mlp.c_fc.weight", 1),
        ("image_tower.visual.transformer.resblocks.0.mlp.c_fc.weight", blocks),
        ("image_tower.visual.conv1.weight", blocks + 1),
        ("text_tower.text.text_projection", 0),
    ):
        assert scales[id(named[f"encoders.{name}"])] == 0.1 * 0.5**halvings, name
    assert {scales[id(p)] for name, p in named.items() if name.startswith("encoders.image_head")} == {1.0}


def test_towers_rest_when_they_are_told_to(framework: Framework) -> None:
    optimizer = torch.optim.AdamW(parameter_groups(framework.named_parameters(), CONFIG))
    for rest, of_towers in ((True, 0.0), (False, 0.2)):
        set_learning_rate(SimpleNamespace(optimizer=optimizer), 2.0, towers_rest=rest)
        assert [group["lr"] for group in optimizer.param_groups] == [2.0, 2.0, of_towers, of_towers]
