"""What is read of the transformers library's folders, and how what is wrong with them is told."""

import json
import logging
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from torch import nn
from transformers import AlbertConfig, AlbertModel, GPT2Config, GPT2Model, ModernBertConfig, ModernBertModel

from model.config import TransformerConfig
from model.errors import ModelError
from model.towers.transformer import transformer_tower
from model.transformers_hub import read_config
from tests.model.hub import SHAPE, save_bert, save_roberta

T = 10


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return save_bert(tmp_path / "bert")


def refusal(name: Path | str, **settings: Any) -> str:
    with pytest.raises(ModelError) as raised:
        transformer_tower(TransformerConfig(name=str(name), **{"max_length": T} | settings))
    assert "\n" not in str(raised.value)
    return str(raised.value)


def change(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize("weights", [None, "random"])
@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"num_attention_heads": 3}, "not a multiple of the number"), ({"hidden_act": "geluu"}, "knows no 'geluu'")],
)
def test_a_configuration_of_which_no_model_can_be_made(
    bert: Path, weights: str | None, settings: dict[str, Any], reason: str
) -> None:
    change(bert, **settings)
    line = refusal(bert, weights=weights)
    assert line.startswith(f"model.text.transformer.name {str(bert)!r}: ")
    assert reason in line
    assert weights is None or "mend its config.json" in line


def test_weights_of_other_shapes_than_the_configuration_says(bert: Path) -> None:
    change(bert, intermediate_size=32)
    assert refusal(bert).endswith(
        "its weights do not fit its config.json: encoder.layer.0.intermediate.dense.bias is [24] there and "
        "[32] here (6 such)"
    )


def test_weights_that_cannot_be_read_are_told_without_the_readers_own_words(bert: Path) -> None:
    weights = bert / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    assert "a weights file of it is cut off; copy it again" in refusal(bert)
    weights.unlink()
    torch.save(nn.Linear(2, 2), bert / "pytorch_model.bin")
    assert "a weights file of it holds more than tensors, such as a whole model; save its state_dict" in refusal(
        bert
    )
    (bert / "pytorch_model.bin").write_bytes(b"hello")
    assert "model.text.transformer.name" in refusal(bert)


def test_a_decoder_is_no_encoder(tmp_path: Path, bert: Path) -> None:
    GPT2Model(GPT2Config(vocab_size=30, n_embd=16, n_layer=1, n_head=2, pad_token_id=0)).save_pretrained(
        tmp_path / "gpt2"
    )
    with pytest.raises(ModelError, match="gpt2 is no text encoder such as BERT"):
        read_config(str(tmp_path / "gpt2"))
    change(bert, is_decoder=True)
    with pytest.raises(ModelError, match="is_decoder is set in its config"):
        read_config(str(bert))


def test_a_family_that_asks_for_values_is_planned_without_any(tmp_path: Path) -> None:
    ModernBertModel(
        ModernBertConfig(vocab_size=30, max_position_embeddings=24, pad_token_id=0, **SHAPE)
    ).save_pretrained(tmp_path)
    config = TransformerConfig(name=str(tmp_path), max_length=24)
    with torch.device("meta"):
        tower, _ = transformer_tower(config, load=False)
    assert all(parameter.is_meta for parameter in tower.parameters())
    transformer_tower(config)


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_more_tokens_than_positions_are_told_with_their_number(bert: Path, device: str) -> None:
    with torch.device(device), pytest.raises(ModelError, match=r"max_length: 25 tokens are too .*; it has 24 pos"):
        transformer_tower(TransformerConfig(name=str(bert), max_length=25), load=False)


def test_positions_that_are_counted_from_the_padding(tmp_path: Path) -> None:
    folder = save_roberta(tmp_path / "roberta")
    assert refusal(folder, max_length=25).endswith("25 tokens are too many for " + str(folder) + "; give fewer")


def test_blocks_that_share_their_weights_cannot_be_frozen_one_by_one(tmp_path: Path) -> None:
    AlbertModel(AlbertConfig(vocab_size=30, embedding_size=8, max_position_embeddings=24, **SHAPE)).save_pretrained(
        tmp_path
    )
    assert "freeze: 1, but the tower has no separate blocks (ALBERT's share their weights)" in refusal(
        tmp_path, freeze=1
    )
    tower, _ = transformer_tower(TransformerConfig(name=str(tmp_path), max_length=T, freeze=0))
    assert {name for name, one in tower.named_parameters() if not one.requires_grad} == {
        name for name, _ in tower.named_parameters() if name.startswith("model.embeddings")
    }


@pytest.mark.parametrize("name", ["here/none", "some/where/else", "/nowhere", "./here/none", "~/no such folder"])
def test_what_can_only_be_a_folder_is_not_asked_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda **_: pytest.fail("asked"))
    assert f"{name!r}: no such folder; give" in refusal(name)


def test_what_the_hub_has_not_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def tries(**_: Any) -> None:
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s [Retry 1/5].")
        raise OSError("We couldn't connect\nCheck your internet connection")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", tries)
    line = refusal("nobody/nothing")
    assert "'nobody/nothing': neither a folder here nor to be had from the hub (We couldn't connect); give" in line
    assert caplog.records == []
    logging.getLogger("huggingface_hub.utils._http").warning("later")
    assert [record.message for record in caplog.records] == ["later"]


def test_a_hub_name_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "neither a folder here nor to be had from the hub" in refusal("nobody/nothing")
