"""Towers frozen, partly frozen or trained, with their activations kept or computed again."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import nn

from model.config import ImageConfig, TextConfig, TowerConfig, TransformerConfig
from model.errors import ModelError
from model.features import Features
from model.tokenizer import build_tokenizer
from model.towers.open_clip import clip_towers
from model.towers.tower import Backbone
from model.towers.transformer import transformer_tower
from model.transformer_tokenizer import read_transformer_tokenizer
from tests.model.hub import CAPTIONS, FAMILIES

T = 10
TOWERS = ("vit", "timm-vit", "convnext", "clip-text", *FAMILIES)
STEM = {  # what is frozen with no block
    "vit": {"visual.conv1", "visual.class_embedding", "visual.positional_embedding", "visual.ln_pre"},
    "timm-vit": {"visual.trunk.cls_token", "visual.trunk.pos_embed", "visual.trunk.patch_embed"},
    "convnext": {"visual.trunk.stem"},
    "clip-text": {"text.token_embedding", "text.positional_embedding"},
    **{family: {"model.embeddings"} for family in FAMILIES},
}
STEM["electra"] = {"model.embeddings", "model.embeddings_project"}
BLOCKS = {"vit": 2, "timm-vit": 12, "convnext": 12, "clip-text": 2, **dict.fromkeys(FAMILIES, 2)}
FIRST_BLOCK = {
    "vit": "visual.transformer.resblocks.0.",
    "timm-vit": "visual.trunk.blocks.0.",
    "convnext": "visual.trunk.stages.0.blocks.0.",
    "clip-text": "text.transformer.resblocks.0.",
    "distilbert": "model.transformer.layer.0.",
    **dict.fromkeys(("bert", "roberta", "electra"), "model.encoder.layer.0."),
}


@pytest.fixture(scope="module", autouse=True)
def architectures(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("architectures")
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    timm = {"timm_model_pretrained": False, "timm_proj": "linear"}
    visions = {
        "vit": {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 2},
        "timm-vit": {"image_size": 224, "timm_model_name": "vit_tiny_patch16_224", "timm_pool": "token"} | timm,
        "convnext": {"image_size": 64, "timm_model_name": "convnext_atto", "timm_pool": ""} | timm,
    }
    for name, vision in visions.items():
        config = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}
        (folder / f"tests-freezing-{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("hub")
    return {family: save(root / family) for family, save in FAMILIES.items()}


@pytest.fixture(params=TOWERS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def build(kind: str, hub: dict[str, Path], **settings: Any) -> Backbone:
    torch.manual_seed(0)
    if kind in FAMILIES:
        return transformer_tower(TransformerConfig(name=str(hub[kind]), max_length=T, **settings))[0]
    image, text, _ = clip_towers(f"tests-freezing-{'vit' if kind == 'clip-text' else kind}")
    tower: Backbone = text if kind == "clip-text" else image
    tower.configure(TowerConfig(**settings), f"model.{kind}")
    return tower


def inputs(kind: str, hub: dict[str, Path]) -> torch.Tensor:
    if kind in FAMILIES:
        return read_transformer_tokenizer(str(hub[kind]), T)(CAPTIONS[:2])
    if kind == "clip-text":
        return build_tokenizer("tests-freezing-vit")(CAPTIONS[:2])
    side = {"vit": 32, "timm-vit": 224, "convnext": 64}[kind]
    return torch.randint(256, (2, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def trained(tower: nn.Module) -> set[str]:
    return {name for name, parameter in tower.named_parameters() if parameter.requires_grad}


def names(tower: nn.Module) -> set[str]:
    return {name for name, _ in tower.named_parameters()}


def total(features: Features) -> torch.Tensor:
    tokens = features.tokens if features.valid is None else features.tokens[features.valid]
    return features.pooled.square().sum() + tokens.square().sum()


def test_by_default_everything_is_trained(kind: str, hub: dict[str, Path]) -> None:
    tower = build(kind, hub)
    assert trained(tower) == names(tower)
    assert all(module.training for module in tower.train().modules())


def test_a_frozen_tower_has_no_gradient_and_no_dropout(kind: str, hub: dict[str, Path]) -> None:
    tower = build(kind, hub, freeze="all").train()
    assert not trained(tower)
    features = tower(inputs(kind, hub))
    assert not features.pooled.requires_grad
    assert not features.tokens.requires_grad
    assert not any(module.training for module in tower.modules())
    with torch.no_grad():
        expected = build(kind, hub).eval()(inputs(kind, hub))
    torch.testing.assert_close(features.pooled, expected.pooled)
    torch.testing.assert_close(features.tokens, expected.tokens)


def test_freezing_no_block_freezes_the_embeddings(kind: str, hub: dict[str, Path]) -> None:
    tower = build(kind, hub, freeze=0)
    frozen = names(tower) - trained(tower)
    assert frozen == {
        name for name in names(tower) if any(name == s or name.startswith(f"{s}.") for s in STEM[kind])
    }
    assert frozen


def test_freezing_a_block_freezes_it_and_what_is_before(kind: str, hub: dict[str, Path]) -> None:
    before, after = (names(tower) - trained(tower) for tower in (build(kind, hub, freeze=n) for n in (0, 1)))
    added = after - before
    assert added
    assert added == {name for name in names(build(kind, hub)) if name.startswith(FIRST_BLOCK[kind])}


def test_freezing_all_blocks_leaves_what_follows_them(kind: str, hub: dict[str, Path]) -> None:
    tower = build(kind, hub, freeze=BLOCKS[kind])
    last = re.compile(r"\.(resblocks|blocks|stages|layers?)\.\d+\.")
    assert not [name for name in trained(tower) if last.search(name)]
    if kind in {"vit", "timm-vit", "convnext", "clip-text"}:
        assert trained(tower), "its projection at least"


def test_more_blocks_than_there_are_is_a_users_error(kind: str, hub: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match=rf"freeze: {BLOCKS[kind] + 1}, but the tower has {BLOCKS[kind]} blocks"):
        build(kind, hub, freeze=BLOCKS[kind] + 1)


def test_a_single_block_is_told_in_the_singular() -> None:
    image, _, _ = clip_towers("tests-freezing-vit")
    image.depths = lambda: ({}, 1)  # type: ignore[method-assign]
    with pytest.raises(ModelError, match=r"freeze: 2, but the tower has 1 block; all is a value, too"):
        image.configure(ImageConfig(freeze=2), "model.image")


def test_what_is_trained_of_a_partly_frozen_tower_has_its_full_gradient(kind: str, hub: dict[str, Path]) -> None:
    x = inputs(kind, hub)
    free, part = build(kind, hub).eval(), build(kind, hub, freeze=1).eval()
    total(free(x)).backward()
    total(part(x)).backward()
    expected = {name: parameter.grad for name, parameter in free.named_parameters()}
    for name, parameter in part.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(
                parameter.grad, expected[name], rtol=1e-4, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}"
            )
        else:
            assert parameter.grad is None, name


@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_blocks_have_no_dropout_and_the_others_have(family: str, hub: dict[str, Path]) -> None:
    tower = build(family, hub, freeze=1).eval().train()
    dropouts = {name: one.training for name, one in tower.named_modules() if isinstance(one, nn.Dropout)}
    frozen = ("model.embeddings", FIRST_BLOCK[family].rstrip("."))
    assert {name for name, training in dropouts.items() if not training} == {
        name for name in dropouts if name.startswith(frozen)
    }
    assert any(dropouts.values())
    assert not all(dropouts.values())


def block_calls(tower: nn.Module) -> Iterator[list[str]]:
    """Counts the forward passes of blocks, or of the attention in them."""
    seen: list[str] = []
    pattern = re.compile(r"\.((resblocks|blocks)\.\d+|layer\.\d+\.attention)$")
    handles = [
        module.register_forward_pre_hook(lambda _m, _i, name=name: seen.append(name))
        for name, module in tower.named_modules()
        if pattern.search(name)
    ]
    yield seen
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("freeze", [None, 1])
def test_checkpointing_computes_blocks_again_and_changes_no_gradient(
    kind: str, freeze: int | None, hub: dict[str, Path]
) -> None:
    x, grads, calls = inputs(kind, hub), [], []
    for checkpointing in (False, True):
        tower = build(kind, hub, freeze=freeze, gradient_checkpointing=checkpointing).train()
        torch.manual_seed(7)  # dropout, which must be drawn alike when computed again
        for seen in block_calls(tower):
            total(tower(x)).backward()
            calls.append(len(seen))
        grads.append({name: p.grad for name, p in tower.named_parameters() if p.requires_grad})
    assert calls[1] > calls[0] >= 2
    for name, expected in grads[0].items():
        torch.testing.assert_close(grads[1][name], expected, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("checkpointing", [False, True])
def test_no_gradient_runs_through_frozen_blocks(kind: str, checkpointing: bool, hub: dict[str, Path]) -> None:
    tower = build(kind, hub, freeze=1, gradient_checkpointing=checkpointing).train()
    block = tower.get_submodule(FIRST_BLOCK[kind].rstrip("."))
    outputs: list[Any] = []
    block.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    assert total(tower(inputs(kind, hub))).requires_grad
    (output,) = outputs
    assert not (output[0] if isinstance(output, tuple) else output).requires_grad


def test_checkpointing_a_frozen_tower_computes_nothing_again(kind: str, hub: dict[str, Path]) -> None:
    tower = build(kind, hub, freeze="all", gradient_checkpointing=True).train()
    assert not tower(inputs(kind, hub)).pooled.requires_grad


def test_a_tower_that_cannot_checkpoint_is_a_users_error(hub: dict[str, Path]) -> None:
    image, _, _ = clip_towers("tests-freezing-convnext")
    image.visual.trunk = nn.Sequential(nn.Conv2d(3, 4, 1))
    with pytest.raises(ModelError, match=r"model\.image\.gradient_checkpointing"):
        image.configure(ImageConfig(gradient_checkpointing=True), "model.image")
    tower = build("bert", hub)
    tower.model.supports_gradient_checkpointing = False
    with pytest.raises(ModelError, match=r"model\.text\.transformer\.gradient_checkpointing: bert"):
        tower.configure(TransformerConfig(gradient_checkpointing=True), "model.text.transformer")


@pytest.mark.parametrize("value", [-1, "some", 1.5, True])
def test_freeze_takes_a_number_of_blocks_or_all(value: Any) -> None:
    with pytest.raises(ValueError, match="freeze"):
        TextConfig.model_validate({"freeze": value})
