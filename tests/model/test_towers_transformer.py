"""Text encoders of the transformers library as towers, and their tokenizer."""

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    AutoTokenizer,
    GPT2Config,
    GPT2Model,
    T5Config,
    T5EncoderModel,
    ViTConfig,
    ViTModel,
)

from model.caption_tokenizer import build_caption_tokenizer
from model.config import ModelConfig, TransformerConfig
from model.errors import ModelError
from model.features import Features
from model.tokenizer import build_tokenizer
from model.towers.build import build_towers
from model.towers.transformer import TransformerTower, transformer_tower
from model.transformer_tokenizer import TransformerTokenizer, read_transformer_tokenizer
from shards.augment import mask_words
from shards.keyed_random import mix
from tests.model.hub import CAPTIONS, CLS, FAMILIES, ID, PAD, SEP, save_bert

T = 10


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("hub")
    return {family: save(root / family) for family, save in FAMILIES.items()}


@pytest.fixture(params=FAMILIES)
def folder(request: pytest.FixtureRequest, hub: dict[str, Path]) -> Path:
    return hub[request.param]


def tower_of(folder: Path, **settings: Any) -> TransformerTower:
    tower, _ = transformer_tower(TransformerConfig(name=str(folder), max_length=T, **settings))
    return tower


def embed(tower: TransformerTower, tokens: torch.Tensor) -> Features:
    with torch.no_grad():
        return tower.eval()(tokens)


def theirs(folder: Path, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, attention mask and last hidden states as the library itself gives them."""
    encoded = AutoTokenizer.from_pretrained(folder)(
        captions, padding="max_length", truncation=True, max_length=T, return_tensors="pt"
    )
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()(**encoded).last_hidden_state
    return encoded["input_ids"], encoded["attention_mask"].bool(), hidden


def test_ids_and_features_are_those_of_the_library(folder: Path) -> None:
    ids, attended, hidden = theirs(folder, CAPTIONS)
    tokens = read_transformer_tokenizer(str(folder), T)(CAPTIONS)
    assert tokens.dtype == torch.int64
    assert torch.equal(tokens, ids)
    features = embed(tower_of(folder), tokens)
    torch.testing.assert_close(features.pooled, hidden[:, 0])
    mean = torch.stack([row[mask].mean(0) for row, mask in zip(hidden, attended, strict=True)])
    torch.testing.assert_close(embed(tower_of(folder, pooling="mean"), tokens).pooled, mean)
    assert features.valid is not None
    for item, caption in enumerate(CAPTIONS):
        words = int(attended[item].sum()) - 2
        expected = hidden[item, 1 : 1 + words] if caption else hidden[item, 1:2]  # the end stands for no words
        torch.testing.assert_close(features.tokens[item][features.valid[item]], expected)


def test_padding_says_nothing(folder: Path) -> None:
    """Longer padding, with what would be other positions, changes no feature."""
    tower, short = tower_of(folder), read_transformer_tokenizer(str(folder), T)(CAPTIONS[:2])
    long = torch.cat([short, torch.full((2, 8), tower.pad)], dim=1)
    plain, padded = embed(tower, short), embed(tower, long)
    assert plain.valid is not None
    assert padded.valid is not None
    torch.testing.assert_close(padded.pooled, plain.pooled)
    torch.testing.assert_close(padded.tokens[padded.valid], plain.tokens[plain.valid])


def test_a_long_text_is_cut_and_still_ends(folder: Path) -> None:
    tokenizer = read_transformer_tokenizer(str(folder), T)
    row = tokenizer([CAPTIONS[-1]])[0]
    assert (row[0], row[-1]) == (tokenizer.begin, tokenizer.end)
    assert tokenizer.pad not in row
    assert tokenizer.end not in row[:-1]
    valid = embed(tower_of(folder), row[None]).valid
    assert valid is not None
    assert valid.all()


def test_every_parameter_of_a_tower_is_trained(folder: Path) -> None:
    tower = tower_of(folder).train()
    features = tower(read_transformer_tokenizer(str(folder), T)(CAPTIONS))
    total = features.pooled.square().sum() + features.tokens[features.valid].square().sum()
    grads = torch.autograd.grad(total, list(tower.parameters()), allow_unused=True)
    assert [n for (n, _), g in zip(tower.named_parameters(), grads, strict=True) if g is None] == []


def test_the_mask_is_given_ready_made_and_says_the_same(folder: Path) -> None:
    tower, tokens = tower_of(folder), read_transformer_tokenizer(str(folder), T)(CAPTIONS)
    assert tower._ready_mask
    ready = embed(tower, tokens)
    tower._ready_mask = False
    plain = embed(tower, tokens)
    torch.testing.assert_close(ready.pooled, plain.pooled)
    torch.testing.assert_close(ready.tokens[plain.valid], plain.tokens[plain.valid])


@pytest.mark.parametrize("training", [True, False])
def test_no_feature_makes_the_host_wait(folder: Path, training: bool) -> None:
    """Tensors without values: to branch on one, or to ask for one, is an error."""
    tower = tower_of(folder, freeze=1, gradient_checkpointing=True, pooling="mean").to("meta").train(training)
    features = tower(torch.zeros(3, T, dtype=torch.int64, device="meta"))
    assert features.pooled.shape == (3, 16)
    tower._ready_mask = False  # as the library would have it, which shows that the check works
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        tower(torch.zeros(3, T, dtype=torch.int64, device="meta"))


@pytest.mark.parametrize("name", ["[SEP]", "[PAD]", "[CLS]"])
def test_the_name_of_a_special_token_in_a_caption_is_text(hub: dict[str, Path], name: str) -> None:
    tokenizer = read_transformer_tokenizer(str(hub["bert"]), T)
    for one in (tokenizer, pickle.loads(pickle.dumps(tokenizer))):
        row = one([f"a {name} dog"])[0].tolist()
        assert row[0] == CLS
        assert row.count(SEP) == row.count(CLS) == 1
        assert row[1:3] == [ID["a"], ID["["]]


def test_a_tokenizer_of_a_vocabulary_file_alone(tmp_path: Path, hub: dict[str, Path]) -> None:
    folder = save_bert(tmp_path / "vocab", vocab_file=True)
    expected = read_transformer_tokenizer(str(hub["bert"]), T)(CAPTIONS)
    assert torch.equal(read_transformer_tokenizer(str(folder), T)(CAPTIONS), expected)


def masked(folder: Path, share: float) -> TransformerTokenizer:
    return read_transformer_tokenizer(str(folder), T, _MaskWords(share))


class _MaskWords:
    """As the trainer would have it; travels to other processes."""

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self, words: Any, key: np.uint64, mask: int, random_tokens: Any) -> list[list[int]]:
        return mask_words(words, key, mask, random_tokens, self.share)


def test_words_are_masked_whole_in_every_family(folder: Path) -> None:
    tokenizer = masked(folder, 1.0)
    captions = ["snowboarder runs"] * 500
    plain, drawn = tokenizer(captions[:1])[0], tokenizer(captions, mix(np.arange(500, dtype=np.uint64)))
    pieces = len(
        [token for token in plain.tolist() if token not in (tokenizer.begin, tokenizer.end, tokenizer.pad)]
    )
    counts = set((drawn == tokenizer.mask).sum(1).tolist())
    assert 0 in counts
    assert pieces in counts
    assert len(counts) <= 4, "none, one word, the other, both"
    special = {tokenizer.begin, tokenizer.end, tokenizer.pad}
    assert not set(tokenizer.random_tokens) & special


def config(folder: Path, towers: str, **settings: Any) -> ModelConfig:
    transformer = {"name": str(folder), "max_length": T, **settings}
    return ModelConfig.model_validate(
        {
            "architecture": "itm-tiny",
            "embed_dim": 16,
            "norm_group": 2,
            "aahr": {"fragment_heads": 2, "pooling_heads": 2},
            "text": {"towers": towers, "transformer": transformer},
        }
    )


def test_two_towers_read_their_own_part_of_the_ids(folder: Path) -> None:
    both = config(folder, "clip+transformer")
    tokens = build_caption_tokenizer(both)(CAPTIONS)
    clip, transformer = build_tokenizer("itm-tiny")(CAPTIONS), read_transformer_tokenizer(str(folder), T)(CAPTIONS)
    assert torch.equal(tokens, torch.cat([clip, transformer], dim=1))
    torch.manual_seed(0)
    tower: Any = build_towers(both).text.eval()
    with torch.no_grad():
        features, pooled, words = tower(tokens), tower.clip(clip).pooled, tower.transformer(transformer)
    torch.testing.assert_close(features.pooled, pooled)
    torch.testing.assert_close(features.tokens, words.tokens)
    assert torch.equal(features.valid, words.valid)
    assert (tower.pooled_width, tower.token_width) == (features.pooled.shape[-1], features.tokens.shape[-1])


def test_a_batch_is_as_long_as_its_longest_caption_and_its_features_do_not_change(folder: Path) -> None:
    short = ["a dog", "dogs", ""]
    for towers, own in (("clip", [16]), ("transformer", [T]), ("clip+transformer", [16, T])):
        settings = config(folder, towers)
        tokenizer, tower = build_caption_tokenizer(settings), build_towers(settings).text.eval()
        cut = tokenizer(short)
        assert cut.shape == (3, 8 * len(own)), towers
        whole = tokenizer([*short, CAPTIONS[-1]])
        assert whole.shape == (4, sum(own)), towers
        with torch.no_grad():
            mine, padded = tower(cut), tower(whole[:3])
        torch.testing.assert_close(mine.pooled, padded.pooled)
        assert not padded.valid[:, mine.valid.shape[1] :].any()
        torch.testing.assert_close(mine.tokens[mine.valid], padded.tokens[padded.valid])


def test_ids_of_another_model_are_refused_by_their_number(hub: dict[str, Path]) -> None:
    tower = build_towers(config(hub["bert"], "clip+transformer")).text
    with pytest.raises(AssertionError, match="tokenizer of another model"):
        tower(build_tokenizer("itm-tiny")(CAPTIONS)[:, 1:])


def test_masking_leaves_the_text_of_clip_alone(hub: dict[str, Path]) -> None:
    both = config(hub["bert"], "clip+transformer")
    tokenizer = pickle.loads(pickle.dumps(build_caption_tokenizer(both, _MaskWords(1.0))))
    captions, keys = ["a dog runs"] * 50, mix(np.arange(50, dtype=np.uint64))
    plain, drawn = tokenizer(captions), tokenizer(captions, keys)
    assert torch.equal(plain[:, :8], drawn[:, :8])
    assert not torch.equal(plain[:, 8:], drawn[:, 8:])


def test_the_tokenizers_of_one_tower_stand_alone(hub: dict[str, Path]) -> None:
    assert torch.equal(
        build_caption_tokenizer(config(hub["bert"], "clip"))(CAPTIONS), build_tokenizer("itm-tiny")(CAPTIONS)
    )
    alone = build_caption_tokenizer(config(hub["bert"], "transformer"))
    assert alone(CAPTIONS).shape == (len(CAPTIONS), T)
    assert alone([]).shape == (0, T)


def fresh(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_a_loader_worker_does_not_import_the_library(hub: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "tokenizer"
    path.write_bytes(pickle.dumps(build_caption_tokenizer(config(hub["bert"], "transformer"))))
    code = f"""
import pickle, sys
tokenizer = pickle.load(open({str(path)!r}, "rb"))
print(tokenizer(["a dog"])[0].tolist(), {{"transformers", "open_clip"}} & set(sys.modules) or "none")
"""
    assert fresh(code) == f"{[CLS, ID['a'], ID['dog'], SEP] + [PAD] * 4} none"


def test_a_run_with_clip_alone_does_not_import_transformers_models() -> None:
    """open_clip imports the library's top, which is cheap; its models are not."""
    code = """
import sys
from model.config import ModelConfig
from model.caption_tokenizer import build_caption_tokenizer
from model.towers.build import build_towers
config = ModelConfig(architecture="itm-tiny")
build_towers(config), build_caption_tokenizer(config)(["a dog"])
print({"transformers.modeling_utils", "transformers.models.bert"} & set(sys.modules) or "none")
"""
    assert fresh(code) == "none"


def test_random_weights_are_a_function_of_the_seed(hub: dict[str, Path]) -> None:
    def weights(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        return tower_of(hub["bert"], weights="random").state_dict()

    first, again, other, saved = weights(1), weights(1), weights(2), tower_of(hub["bert"]).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    name = "model.encoder.layer.0.output.dense.weight"
    assert not torch.equal(first[name], other[name])
    assert not torch.equal(first[name], saved[name])


def test_weights_that_come_afterwards_are_not_read_before(hub: dict[str, Path], tmp_path: Path) -> None:
    """A checkpoint's model is built of the configuration alone."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((hub["bert"] / name).read_bytes())
    tower, notes = transformer_tower(TransformerConfig(name=str(tmp_path), max_length=T), load=False)
    assert tower.token_width == 16
    assert notes == []
    with pytest.raises(ModelError, match=r"model\.text\.transformer\.name .*no file named"):
        transformer_tower(TransformerConfig(name=str(tmp_path), max_length=T))


def test_weights_in_half_precision_are_taken_as_float32(tmp_path: Path) -> None:
    folder = save_bert(tmp_path / "half")
    AutoModel.from_pretrained(folder).half().save_pretrained(folder)
    assert {one.dtype for one in tower_of(folder).parameters()} == {torch.float32}


def test_what_a_pretrained_model_had_beside_the_encoder_is_listed(tmp_path: Path) -> None:
    folder = save_bert(tmp_path / "lm", masked_lm=True)
    tower, notes = transformer_tower(TransformerConfig(name=str(folder), max_length=T))
    assert notes == [f"{folder}: not used: cls.* (5)"], "the pooler is not wanted"
    expected = theirs(folder, CAPTIONS)
    torch.testing.assert_close(embed(tower, expected[0]).pooled, expected[2][:, 0])


def test_building_says_nothing(hub: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    tower_of(hub["bert"])
    read_transformer_tokenizer(str(hub["roberta"]), T)
    assert capfd.readouterr() == ("", "")


def refused(folder: Path | str, message: str, **settings: Any) -> None:
    name = str(folder)
    with pytest.raises(ModelError, match=message) as raised:
        transformer_tower(TransformerConfig(name=name, **{"max_length": T} | settings))
    assert "\n" not in str(raised.value)


def test_a_hub_name_that_cannot_be_had_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    refused(
        "nobody/nothing", r"model\.text\.transformer\.name 'nobody/nothing': .*; give a folder that save_pretrained"
    )


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    refused(tmp_path / "none", "no such folder")
    refused("./none", "no such folder")


def test_a_folder_of_something_else_is_one_line(tmp_path: Path) -> None:
    refused(tmp_path, r"model\.text\.transformer\.name")
    (tmp_path / "config.json").write_text("{")
    refused(tmp_path, r"model\.text\.transformer\.name")


def test_weights_of_another_model_are_refused(tmp_path: Path, hub: dict[str, Path]) -> None:
    folder = save_bert(tmp_path / "bert")
    (folder / "model.safetensors").write_bytes((hub["electra"] / "model.safetensors").read_bytes())
    refused(folder, r"model\.text\.transformer\.name")
    vision = tmp_path / "bert" / "model.safetensors"
    vision.unlink()
    ViTModel(
        ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    ).save_pretrained(tmp_path / "vit")
    vision.write_bytes((tmp_path / "vit" / "model.safetensors").read_bytes())
    refused(folder, r"do not fit its config\.json: .* there and .* here \(3 such\)")


def test_other_kinds_of_model_are_refused(tmp_path: Path) -> None:
    ViTModel(
        ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    ).save_pretrained(tmp_path / "vit")
    refused(tmp_path / "vit", "vit is no text encoder")
    T5EncoderModel(T5Config(vocab_size=30, d_model=16, d_kv=8, d_ff=8, num_layers=1, num_heads=2)).save_pretrained(
        tmp_path / "t5"
    )
    refused(tmp_path / "t5", "t5 is no text encoder")
    GPT2Model(GPT2Config(vocab_size=30, n_embd=16, n_layer=1, n_head=2)).save_pretrained(tmp_path / "gpt2")
    refused(tmp_path / "gpt2", "gpt2 is no text encoder")


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path, hub: dict[str, Path]) -> None:
    folder = save_bert(tmp_path / "bert")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_bytes((hub["roberta"] / name).read_bytes())
    with pytest.raises(ModelError, match=r"model\.text\.transformer\.name .*tokenizer"):
        read_transformer_tokenizer(str(folder), T)


def test_a_tokenizer_that_pads_with_another_id_is_refused_for_that(tmp_path: Path) -> None:
    folder = save_bert(tmp_path / "bert")
    settings = json.loads((folder / "config.json").read_text()) | {"pad_token_id": 1}
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=r"its tokenizer pads with 0, but pad_token_id in its config\.json is 1;"):
        read_transformer_tokenizer(str(folder), T)


def test_more_tokens_than_positions_are_refused(folder: Path) -> None:
    tower_of(folder)
    transformer_tower(TransformerConfig(name=str(folder), max_length=24))
    refused(folder, r"max_length: 25 tokens are too many", max_length=25)


class Trap:
    """Would be called while unpickling."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("sprung"),))


def test_a_pickle_in_a_folder_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = save_bert(tmp_path / "bert")
    (folder / "model.safetensors").unlink()
    torch.save({"embeddings.word_embeddings.weight": Trap()}, folder / "pytorch_model.bin")
    refused(folder, r"model\.text\.transformer\.name")
    refused(folder, r"model\.text\.transformer\.weights", weights=str(folder))
    assert not Path("sprung").exists()
