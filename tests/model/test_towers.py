"""The towers and their tokenizer: what they promise about shapes, masks, seeds and weights."""

import json
import logging
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from model.config import AahrConfig, ModelConfig
from model.encoders import DualEncoder
from model.errors import ModelError
from model.features import Features
from model.tokenizer import build_tokenizer
from model.towers.open_clip import ImageTower, TextTower, TowerWidths, clip_towers, tower_widths

OURS = {  # architecture: patches, and what tower_widths says
    "itm-tiny": (4, TowerWidths(32, 32, 32, 32, 16)),
    "itm-mini": (64, TowerWidths(128, 128, 128, 64, 32)),
    "itm-small": (49, TowerWidths(192, 192, 192, 112, 24)),
    "tests-convnext": (9, TowerWidths(32, 320, 32, 112, 16)),
}
START, END = 49406, 49407


@pytest.fixture(autouse=True, scope="module")
def convnext(tmp_path_factory: pytest.TempPathFactory) -> None:
    """An architecture with a timm image tower."""
    vision = {"image_size": 112, "timm_model_name": "convnext_atto", "timm_pool": "", "timm_proj": "linear"}
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    folder = tmp_path_factory.mktemp("architectures")
    (folder / "tests-convnext.json").write_text(
        json.dumps({"embed_dim": 32, "vision_cfg": vision | {"timm_model_pretrained": False}, "text_cfg": text})
    )
    open_clip.add_model_config(folder)


def pixels(count: int, side: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, side, side, 3), dtype=torch.uint8, generator=generator)


def embed_texts(tower: TextTower, tokens: torch.Tensor) -> Features:
    with torch.no_grad():
        return tower.eval()(tokens)


@pytest.fixture(scope="module")
def tiny() -> tuple[ImageTower, TextTower]:
    return clip_towers("itm-tiny")[:2]


@pytest.mark.parametrize("architecture", OURS)
def test_features_have_the_promised_shapes(architecture: str) -> None:
    patches, expected = OURS[architecture]
    widths = tower_widths(architecture)
    assert widths == expected
    image_tower, text_tower, _ = clip_towers(architecture)
    with torch.no_grad():
        image = image_tower.eval()(pixels(2, widths.image_size))
    assert image.pooled.shape == (2, widths.pooled)
    assert image.tokens.shape == (2, patches, widths.image_tokens)
    assert image.valid is None
    tokens = build_tokenizer(architecture)(["a red circle", "a dog", "one"])
    assert tokens.shape == (3, widths.context_length)
    assert tokens.dtype == torch.int64
    text = embed_texts(text_tower, tokens)
    assert text.pooled.shape == (3, widths.pooled)
    assert text.tokens.shape == (3, widths.context_length - 1, widths.text_tokens)
    assert text.valid is not None
    assert text.valid.shape == text.tokens.shape[:2]


@pytest.mark.parametrize(
    ("caption", "words"), [("a red circle", 3), ("", 0), ("  ", 0), ("a dog, a cat", 5), ("many " * 14, 14)]
)
def test_valid_tokens_are_the_words_and_the_end_of_text(
    tiny: tuple[ImageTower, TextTower], caption: str, words: int
) -> None:
    tokens = build_tokenizer("itm-tiny")([caption])
    valid = embed_texts(tiny[1], tokens).valid
    assert valid is not None
    assert tokens[0, 1:][valid[0]].tolist()[-1] == END
    assert START not in tokens[0, 1:][valid[0]]
    assert 0 not in tokens[0, 1:][valid[0]]
    assert valid.sum() == words + 1
    assert not valid[0, words + 1 :].any()


def test_a_long_text_is_cut_and_still_ends_with_the_end_of_text(tiny: tuple[ImageTower, TextTower]) -> None:
    tokens = build_tokenizer("itm-tiny")(["a very long story about " * 30])
    assert tokens.shape == (1, 16)
    assert tokens[0, 0] == START
    assert tokens[0, -1] == END
    assert (tokens[0] == END).sum() == 1
    valid = embed_texts(tiny[1], tokens).valid
    assert valid is not None
    assert valid.all()


def test_tokens_of_a_text_do_not_depend_on_what_follows_its_end(tiny: tuple[ImageTower, TextTower]) -> None:
    tokens = build_tokenizer("itm-tiny")(["a red circle"])
    other = tokens.clone()
    other[0, 5:] = 320
    plain, changed = embed_texts(tiny[1], tokens), embed_texts(tiny[1], other)
    assert plain.valid is not None
    torch.testing.assert_close(plain.pooled, changed.pooled)
    torch.testing.assert_close(plain.tokens[plain.valid], changed.tokens[plain.valid])


def test_tokens_are_the_words_own_places_without_the_start(tiny: tuple[ImageTower, TextTower]) -> None:
    first, second = (embed_texts(tiny[1], build_tokenizer("itm-tiny")([t])) for t in ("red dog", "red cat"))
    torch.testing.assert_close(first.tokens[:, 0], second.tokens[:, 0])  # "red", which sees no later word
    assert not torch.allclose(first.tokens[:, 1], second.tokens[:, 1])


def test_pixels_are_normalised_as_open_clip_does(tiny: tuple[ImageTower, TextTower]) -> None:
    from torchvision.transforms.functional import normalize

    images = pixels(2, 32)
    seen: list[torch.Tensor] = []
    handle = tiny[0].visual.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    tiny[0](images)
    handle.remove()
    expected = normalize(
        images.permute(0, 3, 1, 2) / 255, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    )
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=1e-5)


def test_an_image_is_embedded_alone_whatever_else_is_in_the_batch(tiny: tuple[ImageTower, TextTower]) -> None:
    images = pixels(3, 32)
    with torch.no_grad():
        together, alone = tiny[0].eval()(images), tiny[0](images[1:2])
    torch.testing.assert_close(together.tokens[1:2], alone.tokens)
    torch.testing.assert_close(together.pooled[1:2], alone.pooled)


class Trunk(torch.nn.Module):
    """Stands for a timm network: gives features of a certain layout."""

    def __init__(self, features: torch.Tensor, **layout: Any) -> None:
        super().__init__()
        self.features = features
        for name, value in layout.items():
            setattr(self, name, value)

    def forward_features(self, _pixels: torch.Tensor) -> torch.Tensor:
        return self.features

    def forward_head(self, features: torch.Tensor) -> torch.Tensor:
        return features.flatten(1).mean(dim=1, keepdim=True)


def timm_tokens(features: torch.Tensor, **layout: Any) -> torch.Tensor:
    visual = torch.nn.Module()
    visual.trunk, visual.head = Trunk(features, **layout), torch.nn.Identity()
    tower = ImageTower(visual, (0.5,) * 3, (0.5,) * 3, 1, features.shape[-1])
    tokens: torch.Tensor = tower(pixels(1, 4)).tokens
    return tokens


def test_a_timm_networks_class_and_register_tokens_are_no_patches() -> None:
    features = torch.arange(14.0).view(1, 7, 2)
    assert torch.equal(timm_tokens(features), features)
    assert torch.equal(timm_tokens(features, num_prefix_tokens=3), features[:, 3:])


def test_a_timm_networks_grid_gives_one_token_a_place_in_both_memory_layouts() -> None:
    grid = torch.arange(24.0).view(1, 2, 3, 4)  # two rows, three columns, four channels
    expected = grid.view(1, 6, 4)
    assert torch.equal(timm_tokens(grid, output_fmt="NHWC"), expected)
    assert torch.equal(timm_tokens(grid.permute(0, 3, 1, 2)), expected)


def test_an_unknown_architecture_is_an_error_that_names_the_nearest() -> None:
    for use in (tower_widths, clip_towers):
        with pytest.raises(ModelError, match=r"'itm-tinny'.*nearest: itm-tiny"):
            use("itm-tinny")
        with pytest.raises(ModelError, match=r"nearest: ViT-B-32,"):
            use("vit-b-32")


@pytest.mark.parametrize(
    "architecture",
    ["RN50", "roberta-ViT-B-32", "coca_ViT-B-32", "ViT-B-16-SigLIP", "ViT-L-14-CLIPA", "nllb-clip-base"],
)
def test_kinds_of_towers_that_are_not_supported_are_refused_before_they_are_built(architecture: str) -> None:
    for use in (tower_widths, clip_towers):
        with pytest.raises(ModelError, match=rf"{architecture}.*ViT or timm image tower with a CLIP text tower"):
            use(architecture)


def test_widths_of_vit_b_32_are_those_of_its_towers() -> None:
    widths = tower_widths("ViT-B-32")
    assert (widths.pooled, widths.image_tokens, widths.text_tokens) == (512, 768, 512)
    assert (widths.image_size, widths.context_length) == (224, 77)
    with torch.device("meta"):  # shapes without the arithmetic
        image_tower, text_tower, _ = clip_towers("ViT-B-32")
        image = image_tower(torch.zeros(2, 224, 224, 3, dtype=torch.uint8))
        text = text_tower(torch.zeros(2, 77, dtype=torch.int64))
    assert image.pooled.shape == text.pooled.shape == (2, 512)
    assert image.tokens.shape == (2, 49, 768)
    assert text.tokens.shape == (2, 76, 512)


def test_random_weights_are_a_function_of_the_seed() -> None:
    def weights(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        image_tower, text_tower, _ = clip_towers("itm-tiny")
        return image_tower.state_dict() | text_tower.state_dict()

    first, again, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["visual.proj"], other["visual.proj"])


def test_building_random_towers_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        clip_towers("itm-tiny")
    assert not caplog.records


def saved_model(path: Path) -> dict[str, torch.Tensor]:
    """The weights of another random model, written to `path` as its ending says."""
    torch.manual_seed(99)
    state: dict[str, torch.Tensor] = open_clip.create_model("itm-tiny", force_custom_text=True).state_dict()
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    else:
        torch.save(state, path)
    return state


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_pretrained_weights_are_read_from_a_file(tmp_path: Path, name: str) -> None:
    state = saved_model(tmp_path / name)
    torch.manual_seed(1)
    image_tower, text_tower, _ = clip_towers("itm-tiny", str(tmp_path / name))
    for tower, part in ((image_tower, "visual."), (text_tower, "text.")):
        own = {key: value for key, value in tower.state_dict().items() if key.startswith(part)}
        theirs = {key: value for key, value in state.items() if key.startswith(part)}
        assert own.keys() == theirs.keys()
        assert all(torch.equal(own[key], theirs[key]) for key in own)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("weights.pt", b"not weights at all"),
        ("weights.pt", b""),
        ("weights.safetensors", b"not weights at all"),
        ("weights.safetensors", b""),
        ("cut.pt", None),
        ("cut.safetensors", None),
    ],
)
def test_a_broken_weights_file_is_a_users_error(tmp_path: Path, name: str, content: bytes | None) -> None:
    path = tmp_path / name
    if content is None:
        saved_model(path)
        content = path.read_bytes()[: path.stat().st_size // 2]
    path.write_bytes(content)
    with pytest.raises(ModelError, match=name):
        clip_towers("itm-tiny", str(path))


def test_weights_of_another_architecture_are_a_users_error(tmp_path: Path) -> None:
    saved_model(tmp_path / "weights.pt")
    with pytest.raises(ModelError, match=r"weights\.pt"):
        clip_towers("itm-mini", str(tmp_path / "weights.pt"))


def test_a_file_that_holds_something_else_is_a_users_error(tmp_path: Path) -> None:
    torch.save(torch.zeros(3), tmp_path / "weights.pt")
    with pytest.raises(ModelError, match=r"weights\.pt"):
        clip_towers("itm-tiny", str(tmp_path / "weights.pt"))


def test_an_unknown_weights_tag_is_a_users_error() -> None:
    with pytest.raises(ModelError, match=r"model\.pretrained 'nothing': no such file, nor a tag .* for itm-tiny;"):
        clip_towers("itm-tiny", "nothing")


def test_pixels_are_normalised_for_the_pretrained_tag_also_where_its_weights_are_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A checkpoint's model is built without the tag's weights, but was trained on the tag's pixels."""
    tag = {"tag": {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "itm-tiny", tag)
    config = ModelConfig(
        architecture="itm-tiny",
        pretrained="tag",
        embed_dim=32,
        norm_group=2,
        aahr=AahrConfig(fragment_heads=2, pooling_heads=2),
    )
    tower = DualEncoder(config, pretrained=False).image_tower
    torch.testing.assert_close(tower.mean.flatten(), 255 * torch.tensor([0.1, 0.2, 0.3]))
    torch.testing.assert_close(tower.std.flatten(), 255 * torch.tensor([0.4, 0.5, 0.6]))


def test_weights_of_another_activation_are_refused_with_the_right_architecture() -> None:
    with pytest.raises(ModelError, match=r"set model\.architecture to ViT-B-32-quickgelu"):
        clip_towers("ViT-B-32", "openai")
