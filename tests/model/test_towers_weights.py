"""Weights from files, folders and checkpoints, matched by name."""

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from model.config import ModelConfig, TransformerConfig
from model.encoders import DualEncoder
from model.errors import ModelError
from model.towers.open_clip import clip_towers
from model.towers.transformer import transformer_tower
from model.towers.weights import find_prefix, grouped, load_matching, read_weights
from tests.model.hub import FAMILIES, save_bert, save_roberta

T = 10


def model_config(**settings: Any) -> ModelConfig:
    tiny = {"architecture": "itm-tiny", "embed_dim": 16, "norm_group": 2}
    return ModelConfig.model_validate(tiny | {"aahr": {"fragment_heads": 2, "pooling_heads": 2}} | settings)


def checkpoint(folder: Path, config: ModelConfig, prefix: str = "encoders.") -> dict[str, torch.Tensor]:
    """A folder as the trainer writes it; returns the encoders' weights."""
    torch.manual_seed(99)
    encoders = DualEncoder(config)
    encoders.image_tower.mean.fill_(7.0)
    state = {name: tensor.clone() for name, tensor in encoders.state_dict().items()}
    folder.mkdir(parents=True)
    save_file({prefix + name: tensor for name, tensor in state.items()}, folder / "weights.safetensors")
    (folder / "state.json").write_text("{}")
    return state


def of_tower(state: dict[str, torch.Tensor], tower: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(tower): tensor for name, tensor in state.items() if name.startswith(tower)}


def same(own: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    assert own.keys() == theirs.keys()
    return all(torch.equal(own[name], theirs[name]) for name in own)


def test_clip_towers_start_from_a_checkpoint_of_ours(tmp_path: Path) -> None:
    state = checkpoint(tmp_path / "step-00000001", model_config())
    torch.manual_seed(1)
    image, text, notes = clip_towers("itm-tiny", str(tmp_path / "step-00000001"))
    assert same(image.state_dict(), of_tower(state, "image_tower.")), "with the normalisation of its pixels"
    assert same(text.state_dict(), of_tower(state, "text_tower."))
    assert image.mean.flatten().tolist() == [7.0] * 3
    image_head, text_head = (sum(name.startswith(f"{side}_head.") for name in state) for side in ("image", "text"))
    assert notes == [
        f"model.pretrained '{tmp_path / 'step-00000001'}': {len(state) - image_head - text_head} of its "
        f"{len(state)} weights taken; not used: encoders.image_head.* ({image_head}), "
        f"encoders.text_head.* ({text_head})"
    ]


def test_towers_of_two_backbones_start_from_a_checkpoint_of_ours(tmp_path: Path) -> None:
    folder = save_bert(tmp_path / "bert")
    text = {"towers": "clip+transformer", "transformer": {"name": str(folder), "max_length": T}}
    image = {"inputs": "pixels+regions", "region_width": 4}
    plain, both = model_config(), model_config(text=text, image=image)
    torch.manual_seed(99)
    encoders = DualEncoder(both)
    with torch.no_grad():
        for parameter in encoders.parameters():
            parameter.add_(1)
    path = tmp_path / "own" / "weights.safetensors"
    path.parent.mkdir()
    save_file({f"encoders.{name}": tensor for name, tensor in encoders.state_dict().items()}, path)

    tower, _ = transformer_tower(TransformerConfig(name=str(folder), weights=str(path.parent), max_length=T))
    assert same(tower.state_dict(), of_tower(encoders.state_dict(), "text_tower.transformer."))
    new = DualEncoder(plain.model_copy(update={"pretrained": str(path)}))
    assert same(new.text_tower.state_dict(), of_tower(encoders.state_dict(), "text_tower.clip."))
    assert same(new.image_tower.state_dict(), of_tower(encoders.state_dict(), "image_tower.clip."))
    (line,) = new.notes
    assert "not used: " in line
    assert "encoders.text_tower.transformer.* (" in line


def test_a_run_is_answered_with_where_its_checkpoints_are(tmp_path: Path) -> None:
    checkpoint(tmp_path / "run" / "checkpoints" / "step-00000001", model_config())
    with pytest.raises(ModelError, match=r"it is a run: give one of its checkpoints/step-\*"):
        clip_towers("itm-tiny", str(tmp_path / "run"))


def test_momentum_copies_beside_the_encoders_are_not_taken_for_them(tmp_path: Path) -> None:
    state = checkpoint(tmp_path / "one", model_config())
    both = {f"encoders.{name}": tensor for name, tensor in state.items()}
    both |= {f"momentum_encoders.{name}": tensor + 1 for name, tensor in state.items()}
    save_file(both, tmp_path / "both.safetensors")
    image, text, notes = clip_towers("itm-tiny", str(tmp_path / "both.safetensors"))
    assert same(
        image.state_dict() | text.state_dict(), of_tower(state, "image_tower.") | of_tower(state, "text_tower.")
    )
    (line,) = notes
    assert line.endswith(f", momentum_encoders.* ({len(state)})")


@pytest.mark.parametrize("prefix", ["", "module.", "a.b.c."])
@pytest.mark.parametrize("old", [False, True], ids=["custom text", "text at the top"])
def test_names_match_whatever_stands_before_them(tmp_path: Path, prefix: str, old: bool) -> None:
    torch.manual_seed(99)
    theirs = open_clip.create_model("itm-tiny", force_custom_text=True).state_dict()
    renamed = {prefix + (name.removeprefix("text.") if old else name): tensor for name, tensor in theirs.items()}
    torch.save({"epoch": 3, "state_dict": renamed}, tmp_path / "weights.pt")
    image, text, notes = clip_towers("itm-tiny", str(tmp_path / "weights.pt"))
    assert same(of_tower(image.state_dict(), "visual."), of_tower(theirs, "visual."))
    assert same(of_tower(text.state_dict(), "text."), of_tower(theirs, "text."))
    (line,) = notes
    assert line.endswith(f"{len(theirs) - 1} of its {len(theirs)} weights taken; not used: {prefix}logit_scale")


def test_what_is_not_there_is_listed_and_left_random(tmp_path: Path) -> None:
    theirs = open_clip.create_model("itm-tiny", force_custom_text=True).state_dict()
    only = {name: tensor for name, tensor in theirs.items() if name.startswith("visual.") and name != "visual.proj"}
    save_file(only, tmp_path / "image.safetensors")
    torch.manual_seed(1)
    image, text, notes = clip_towers("itm-tiny", str(tmp_path / "image.safetensors"))
    torch.manual_seed(1)
    fresh = clip_towers("itm-tiny")
    assert torch.equal(image.visual.proj, fresh[0].visual.proj)
    assert torch.equal(image.visual.conv1.weight, theirs["visual.conv1.weight"])
    # both towers are as wide, so that the image's blocks would fit the text's
    assert same(text.state_dict(), fresh[1].state_dict())
    source = f"model.pretrained '{tmp_path / 'image.safetensors'}'"
    assert notes == [
        f"visual.proj: not in {source}, left random",
        f"text.*: not in {source}, left random",
        f"{source}: {len(only)} of its {len(only)} weights taken",
    ]


def test_a_file_of_something_else_is_a_users_error(tmp_path: Path) -> None:
    save_file({"layer.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match=r"other\.safetensors': weights of another model: no name in it is known"):
        clip_towers("itm-tiny", str(tmp_path / "other.safetensors"))
    bert = save_bert(tmp_path / "bert")
    with pytest.raises(ModelError, match=r"transformer\.weights .*other\.safetensors': weights of another model"):
        transformer_tower(
            TransformerConfig(name=str(bert), max_length=T, weights=str(tmp_path / "other.safetensors"))
        )


def test_weights_of_another_shape_are_refused_by_name(tmp_path: Path) -> None:
    theirs = open_clip.create_model("itm-tiny", force_custom_text=True).state_dict()
    theirs["visual.ln_post.weight"] = torch.ones(33)
    save_file(theirs, tmp_path / "weights.safetensors")
    with pytest.raises(ModelError, match=r"visual\.ln_post\.weight is \[33\] there and \[32\] here \(1 such\)"):
        clip_towers("itm-tiny", str(tmp_path / "weights.safetensors"))


@pytest.fixture
def larger(tmp_path: Path) -> str:
    """The tiny architecture on 64 pixels and 24 tokens."""
    config = open_clip.get_model_config("itm-tiny")
    config["vision_cfg"]["image_size"], config["text_cfg"]["context_length"] = 64, 24
    (tmp_path / "tests-larger.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "tests-larger.json")
    return "tests-larger"


@pytest.mark.parametrize("ours", [True, False])
def test_positions_are_interpolated_to_another_size_as_open_clip_does(
    tmp_path: Path, larger: str, ours: bool
) -> None:
    theirs = open_clip.create_model("itm-tiny", force_custom_text=True)
    path = tmp_path / "weights.pt"
    torch.save(theirs.state_dict(), path)
    expected = open_clip.create_model(larger, str(path), force_custom_text=True).state_dict()
    if ours:
        own = {f"encoders.image_tower.{n}": t for n, t in theirs.state_dict().items() if n.startswith("visual.")}
        own |= {f"encoders.text_tower.{n}": t for n, t in theirs.state_dict().items() if n.startswith("text.")}
        torch.save(own, path)
    image, text, notes = clip_towers(larger, str(path))
    torch.testing.assert_close(image.visual.positional_embedding, expected["visual.positional_embedding"])
    torch.testing.assert_close(text.text.positional_embedding, expected["text.positional_embedding"])
    assert "visual.positional_embedding: interpolated from 5 to 17 places" in notes
    assert "text.positional_embedding: interpolated from 16 to 24 places" in notes


def test_another_size_of_pictures_needs_no_other_architecture(tmp_path: Path, larger: str) -> None:
    theirs = open_clip.create_model("itm-tiny", force_custom_text=True)
    torch.save(theirs.state_dict(), tmp_path / "weights.pt")
    expected, _, _ = clip_towers(larger, str(tmp_path / "weights.pt"))
    image, text, notes = clip_towers("itm-tiny", str(tmp_path / "weights.pt"), image_size=64)
    assert same(image.state_dict(), expected.state_dict())
    assert torch.equal(text.text.positional_embedding, theirs.text.positional_embedding)
    assert [line for line in notes if "interpolated" in line] == [
        "visual.positional_embedding: interpolated from 5 to 17 places"
    ]
    assert image(torch.zeros(1, 64, 64, 3, dtype=torch.uint8)).tokens.shape == (1, 16, 32)


def test_a_size_that_patches_do_not_fill_is_a_users_error() -> None:
    with pytest.raises(ModelError, match=r"model\.image\.size: 40 is not a multiple of 16, the side of a patch"):
        clip_towers("itm-tiny", image_size=40)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_transformer_starts_from_a_folder_of_another(tmp_path: Path, family: str) -> None:
    first, second = FAMILIES[family](tmp_path / "first"), FAMILIES[family](tmp_path / "second folder")
    tower, notes = transformer_tower(TransformerConfig(name=str(first), weights=str(second), max_length=T))
    direct, _ = transformer_tower(TransformerConfig(name=str(second), max_length=T))
    assert same(tower.state_dict(), direct.state_dict())
    (line,) = notes
    count = len(read_weights(second, "").tensors)
    assert line == f"model.text.transformer.weights '{second}': {count} of its {count} weights taken"


def test_weights_of_another_transformer_are_refused(tmp_path: Path) -> None:
    bert, roberta = save_bert(tmp_path / "bert"), save_roberta(tmp_path / "roberta")
    with pytest.raises(ModelError, match=r"model\.text\.transformer\.weights .*weights of another model"):
        transformer_tower(TransformerConfig(name=str(bert), weights=str(roberta), max_length=T))


def test_a_folder_of_several_files_is_read_whole(tmp_path: Path) -> None:
    whole = load_file(save_bert(tmp_path / "bert") / "model.safetensors")
    parts = tmp_path / "parts"
    parts.mkdir()
    names = sorted(whole)
    places = {name: f"model-{number % 2}.safetensors" for number, name in enumerate(names)}
    for file in set(places.values()):
        save_file({name: whole[name] for name in names if places[name] == file}, parts / file)
    (parts / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert same(read_weights(parts, "setting").tensors, whole)
    (parts / "model-1.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"parts': model-1\.safetensors is no weights file"):
        read_weights(parts, "setting")
    (parts / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ModelError, match=r"index\.json is damaged"):
        read_weights(parts, "setting")


def test_what_cannot_be_read_is_a_users_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"setting .*none\.pt': no such file or folder"):
        read_weights(tmp_path / "none.pt", "setting")
    with pytest.raises(ModelError, match=r"holds none of weights\.safetensors, model\.safetensors"):
        read_weights(tmp_path, "setting")
    torch.save({"epoch": 3}, tmp_path / "weights.pt")
    with pytest.raises(ModelError, match="holds no named weights"):
        read_weights(tmp_path / "weights.pt", "setting")


class Trap:
    """Would be called while unpickling."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("sprung"),))


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".ckpt"])
def test_a_pickle_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"visual.conv1.weight": Trap()}, f"weights{suffix}")
    with pytest.raises(ModelError, match="holds more than tensors, such as a whole model; save its state_dict"):
        clip_towers("itm-tiny", f"weights{suffix}")
    assert not Path("sprung").exists()


_OTHERS = {
    "a.yaml": b"data: {train: here}\n",
    "a.txt": b"hello\n",
    "a.py": b"import os\n\nprint(os)\n",
    "a.jpg": b"\xff\xd8\xff\xe0\x00\x10JFIF",
    "a.npz": b"abc",
    "stack.pt": b"\x85",
    "struct.pt": b"J\x00",
    "short zip.pt": b"PK\x03\x04" + 5000 * b"\x00",
    "empty.pt": b"",
    "empty.safetensors": b"",
    "a.safetensors": b"abcdefghijklmnopqrstuvwxyz",
}


@pytest.mark.parametrize("name", _OTHERS)
def test_a_file_of_something_else_is_told_without_a_readers_own_words(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(_OTHERS[name])
    with pytest.raises(ModelError) as raised:
        clip_towers("itm-tiny", str(path))
    mend = "give a .safetensors or a state_dict saved by torch.save"
    assert str(raised.value) == f"model.pretrained {str(path)!r}: is no weights file: {mend}"


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_a_file_that_was_cut_off_is_told_as_such(tmp_path: Path, name: str) -> None:
    state = {"a": torch.zeros(99_999), "b": torch.zeros(99_999)}
    path = tmp_path / name
    if path.suffix == ".pt":
        torch.save(state, path)
    else:
        save_file(state, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ModelError, match=f"{name}': is cut off; copy it again"):
        read_weights(path, "setting")


@pytest.mark.parametrize("scripted", [False, True])
def test_of_a_whole_model_its_state_dict_is_asked_for(tmp_path: Path, scripted: bool) -> None:
    module, path = nn.Linear(2, 2), tmp_path / "model.pt"
    if scripted:
        torch.jit.save(torch.jit.script(module), path)
    else:
        torch.save(module, path)
    with pytest.raises(ModelError, match=r"such as a whole model; save its state_dict\(\) with torch\.save$"):
        read_weights(path, "setting")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused_by_name(tmp_path: Path, value: float) -> None:
    state = open_clip.create_model("itm-tiny", force_custom_text=True).state_dict()
    state["logit_scale"].fill_(value)  # not taken, so it does not matter
    torch.save(state, tmp_path / "weights.pt")
    clip_towers("itm-tiny", str(tmp_path / "weights.pt"))
    state["text.text_projection"][3, 4] = value
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(ModelError, match=r"weights\.pt': text\.text_projection has values that are not finite"):
        clip_towers("itm-tiny", str(tmp_path / "weights.pt"))


@pytest.mark.parametrize("setting", ["name", "weights"])
def test_what_is_not_finite_of_a_transformer_is_refused_by_name(tmp_path: Path, setting: str) -> None:
    good, bad = save_bert(tmp_path / "good"), save_bert(tmp_path / "bad")
    state, name = load_file(bad / "model.safetensors"), "encoder.layer.1.output.dense.bias"
    state[name][2] = float("nan")
    save_file(state, bad / "model.safetensors", {"format": "pt"})
    given = {"name": str(good)} | {setting: str(bad)}
    with pytest.raises(ModelError, match=rf"transformer\.{setting} .*bad': {name} has values that are not finite"):
        transformer_tower(TransformerConfig(max_length=T, **given))


def test_what_was_not_used_is_grouped_by_what_nothing_used_is_under() -> None:
    names = ["queue.a", "momentum.x.a", "momentum.y", "encoders.head.a", "encoders.head.b", "encoders.tower.z", "n"]
    assert grouped(names, ["encoders.tower.a", "encoders.tower.b"]) == [
        "encoders.head.* (2)",
        "encoders.tower.z",
        "momentum.* (2)",
        "n",
        "queue.a",
    ]


def test_of_several_sets_the_fullest_then_the_one_with_the_shortest_prefix() -> None:
    module = nn.Sequential(nn.Embedding(2, 3), nn.Linear(3, 3))
    assert find_prefix(module, ["a.0.weight", "bb.0.weight", "bb.1.weight"]) == "bb."
    assert find_prefix(module, ["bb.0.weight", "a.0.weight"]) == "a."
    assert find_prefix(module, ["b.0.weight", "a.0.weight"]) == "a."
    assert find_prefix(module, ["x0.weight", "a.1.weight"]) is None


def test_what_was_taken_is_no_longer_unused(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Embedding(2, 3), nn.Linear(3, 3))
    save_file({"x.0.weight": torch.ones(2, 3), "y": torch.ones(1)}, tmp_path / "w.safetensors")
    weights = read_weights(tmp_path / "w.safetensors", "setting")
    missing = load_matching(module, weights, "tower.")
    assert missing is not None
    assert [line.split(":")[0] for line in missing] == ["tower.1.weight", "tower.1.bias"]
    assert weights.report() == f"{weights.source}: 1 of its 2 weights taken; not used: y"
    assert torch.equal(module[0].weight, torch.ones(2, 3))
