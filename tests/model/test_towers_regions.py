"""Precomputed regions as an image's local tokens, with pixels beside them and without."""

from typing import Any

import pytest
import torch

from model.config import ModelConfig
from model.encoders import DualEncoder
from model.errors import ModelError
from model.features import Features
from model.tokenizer import build_tokenizer
from model.towers.build import build_towers
from model.towers.regions import RegionTower

B, R, F = 4, 3, 6
MASK = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 1, 1], [0, 0, 0]]).bool()


def regions(seed: int = 0) -> torch.Tensor:
    return torch.randn(B, R, F, generator=torch.Generator().manual_seed(seed))


def pixels() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (B, 32, 32, 3), dtype=torch.uint8, generator=generator)


def config(inputs: str, **settings: Any) -> ModelConfig:
    return ModelConfig.model_validate(
        {
            "architecture": "itm-tiny",
            "embed_dim": 16,
            "norm_group": 2,
            "aahr": {"fragment_heads": 2, "pooling_heads": 2, "dropout": 0.0},
            "image": {"inputs": inputs, "region_width": F, **settings},
        }
    )


def test_the_global_feature_of_regions_alone_is_the_mean_of_the_real_ones() -> None:
    x = regions()
    features = RegionTower(F)(None, x, MASK)
    for item in range(3):
        rows = [x[item, place] for place in range(R) if MASK[item, place]]
        torch.testing.assert_close(features.pooled[item], sum(rows) / len(rows))
        assert features.valid is not None
        torch.testing.assert_close(features.tokens[item][features.valid[item]], torch.stack(rows))


def test_an_image_without_regions_has_one_of_zeros() -> None:
    features = RegionTower(F)(None, regions(), MASK)
    assert features.valid is not None
    assert features.valid[3].tolist() == [True, False, False]
    assert not features.tokens[3, 0].any()
    assert not features.pooled[3].any()


def test_without_a_mask_all_regions_are_real() -> None:
    x = regions()
    features = RegionTower(F)(None, x, None)
    assert features.valid is None
    everything = RegionTower(F)(None, x, torch.ones(B, R, dtype=torch.bool))
    torch.testing.assert_close(features.pooled, everything.pooled)
    torch.testing.assert_close(features.tokens, everything.tokens)


def encode(encoders: DualEncoder, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return encoders.encode_image(pixels(), x, mask)


@pytest.mark.parametrize("inputs", ["pixels+regions", "regions"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_what_stands_in_padded_regions_changes_no_embedding(inputs: str, training: bool) -> None:
    """Also in training, where batch norm takes its statistics from the regions."""
    torch.manual_seed(0)
    encoders = DualEncoder(config(inputs)).train(training)
    x, mask = regions(), MASK.clone()
    mask[3, 1] = True
    spoilt = torch.where(mask.unsqueeze(-1), x, 1e4)
    longer = torch.cat([spoilt, torch.full((B, 2, F), 1e4)], dim=1)
    wider = torch.cat([mask, torch.zeros(B, 2, dtype=torch.bool)], dim=1)
    with torch.no_grad():
        plain = encode(encoders, x, mask)
        torch.testing.assert_close(encode(encoders, spoilt, mask), plain)
        torch.testing.assert_close(encode(encoders, longer, wider), plain)
        assert not torch.allclose(encode(encoders, x + 1, mask), plain)


def test_with_pixels_the_global_feature_is_the_image_towers() -> None:
    torch.manual_seed(0)
    tower: Any = build_towers(config("pixels+regions")).image.eval()
    with torch.no_grad():
        features: Features = tower(pixels(), regions(), MASK)
        expected = tower.clip(pixels())
    torch.testing.assert_close(features.pooled, expected.pooled)
    assert features.tokens.shape == (B, R, F)
    assert (tower.pooled_width, tower.token_width) == (32, F)


def test_regions_alone_need_no_pixels_and_no_image_tower() -> None:
    encoders = DualEncoder(config("regions"))
    assert not list(encoders.image_tower.parameters())
    embedding = encoders.train().encode_image(None, regions(), MASK)
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(B))
    embedding.sum().backward()
    assert all(parameter.grad is not None for parameter in encoders.image_head.parameters())
    assert not config("regions").reads_pixels
    assert config("regions").reads_regions


@pytest.mark.parametrize("inputs", ["pixels", "pixels+regions"])
def test_pixels_that_are_missing_are_a_users_error(inputs: str) -> None:
    with pytest.raises(ModelError, match="holds no images"):
        DualEncoder(config(inputs)).encode_image(None, regions(), MASK)


@pytest.mark.parametrize("inputs", ["pixels+regions", "regions"])
def test_regions_that_are_missing_or_of_another_width_are_a_users_error(inputs: str) -> None:
    encoders = DualEncoder(config(inputs))
    with pytest.raises(ModelError, match="holds no regions"):
        encoders.encode_image(pixels())
    with pytest.raises(ModelError, match=r"region_width: 6, but the data set's regions have 7"):
        encoders.encode_image(pixels(), torch.zeros(B, R, 7), MASK)


def test_pixels_alone_leave_regions_of_the_data_set_unread() -> None:
    encoders = DualEncoder(config("pixels")).eval()
    with torch.no_grad():
        torch.testing.assert_close(encode(encoders, regions(), MASK), encoders.encode_image(pixels()))


@pytest.mark.parametrize("inputs", ["pixels", "pixels+regions", "regions"])
def test_no_embedding_makes_the_host_wait(inputs: str) -> None:
    """Tensors without values: to branch on one, or to ask for one, is an error."""
    encoders = DualEncoder(config(inputs)).to("meta").train()
    embedding = encoders.encode_image(pixels().to("meta"), regions().to("meta"), MASK.to("meta"))
    assert embedding.shape == encoders.encode_text(torch.zeros(B, 16, dtype=torch.int64, device="meta")).shape


def test_texts_are_as_before_with_regions() -> None:
    embedding = DualEncoder(config("regions")).eval().encode_text(build_tokenizer("itm-tiny")(["a dog"]))
    assert embedding.shape == (1, 16)
