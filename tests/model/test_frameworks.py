"""The framework with its base loss alone, in one process; whole methods: test_methods.py."""

import pytest
import torch

from model.config import AahrConfig, LossConfig, ModelConfig
from model.encoders import DualEncoder
from model.frameworks import Framework
from model.tokenizer import build_tokenizer
from tests.model.test_hinge import hinge_with_loops

CONFIG = ModelConfig(
    architecture="itm-tiny",
    embed_dim=16,
    norm_group=2,
    aahr=AahrConfig(fragment_heads=2, pooling_heads=2, dropout=0.0),
)
TEXTS = ["a red circle", "a dog", "two cats and a long caption", "a house", "the sea", "a green tree"]


Inputs = tuple[torch.Tensor, None, None, torch.Tensor, torch.Tensor, torch.Tensor]
OFF = {name: {"weight": 0.0} for name in ("prototypes", "momentum_contrast", "relations", "regulariser")}


def batch(ids: list[int], valid: list[bool] | None = None) -> Inputs:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (len(ids), 32, 32, 3), dtype=torch.uint8, generator=generator)
    text = build_tokenizer("itm-tiny")(TEXTS[: len(ids)])
    return images, None, None, text, torch.tensor(ids), torch.tensor(valid or [True] * len(ids))


def base_alone(
    encoders: DualEncoder, steps_per_epoch: int = 0, autocast: torch.dtype | None = None, **base: float | None
) -> Framework:
    """AAHR with nothing but its base loss."""
    loss = LossConfig.model_validate({"base": base, **OFF})
    return Framework(encoders, CONFIG, loss, steps_per_epoch=steps_per_epoch, total_steps=9, autocast=autocast)


@pytest.fixture(scope="module")
def encoders() -> DualEncoder:
    torch.manual_seed(0)
    return DualEncoder(CONFIG).train()


def expected_loss(encoders: DualEncoder, ids: list[int], hardest: bool) -> torch.Tensor:
    images, _, _, text, *_ = batch(ids)
    image, caption = encoders.encode_image(images).double(), encoders.encode_text(text).double()
    return hinge_with_loops(image, caption, caption, ids, ids, hardest) + hinge_with_loops(
        caption, image, image, ids, ids, hardest
    )


@pytest.mark.parametrize("ids", [[0, 1, 2, 3, 4, 5], [7, 1, 7, 1, 4, 7]], ids=["different", "same images"])
@pytest.mark.parametrize("hardest", [True, False], ids=["hardest", "all"])
def test_loss_and_gradients_are_those_of_the_loops(encoders: DualEncoder, ids: list[int], hardest: bool) -> None:
    losses = base_alone(encoders, weight=3.0, all_negatives_steps=0 if hardest else 1)(*batch(ids), 0)
    expected = expected_loss(encoders, ids, hardest)
    assert set(losses) == {"loss", "base"}
    assert not losses["base"].requires_grad
    torch.testing.assert_close(losses["base"].double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses["loss"].double(), 3 * expected, rtol=1e-5, atol=1e-6)
    parameters = dict(encoders.named_parameters())
    mine = torch.autograd.grad(losses["loss"], list(parameters.values()))
    theirs = torch.autograd.grad(3 * expected, list(parameters.values()))
    for name, a, b in zip(parameters, mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("hardest", [True, False], ids=["hardest", "all"])
def test_pairs_that_only_fill_a_batch_are_neither_anchors_nor_negatives(
    encoders: DualEncoder, hardest: bool
) -> None:
    ids, valid = [0, 1, 2, 1, 3, 4], [True, True, False, True, False, True]
    framework = base_alone(encoders, all_negatives_steps=0 if hardest else 1)
    losses = framework(*batch(ids, valid), 0)
    images, _, _, text, *_ = batch(ids)
    real = [place for place, one in enumerate(valid) if one]
    # embedded with the rest of the batch, which its batch norm sees
    image, caption = encoders.encode_image(images).double()[real], encoders.encode_text(text).double()[real]
    kept = [ids[place] for place in real]
    expected = hinge_with_loops(image, caption, caption, kept, kept, hardest) + hinge_with_loops(
        caption, image, image, kept, kept, hardest
    )
    torch.testing.assert_close(losses["base"].double(), expected, rtol=1e-5, atol=1e-6)


def test_every_parameter_of_the_encoders_is_trained(encoders: DualEncoder) -> None:
    losses = base_alone(encoders, 1)(*batch([0, 1, 2, 3]), 0)
    grads = torch.autograd.grad(losses["loss"], list(encoders.parameters()), allow_unused=True)
    assert [n for (n, _), g in zip(encoders.named_parameters(), grads, strict=True) if g is None] == []


@pytest.mark.parametrize(("setting", "switch"), [(None, 5), (3, 3), (0, 0)])
def test_the_hardest_negative_takes_over_at_the_configured_step(
    encoders: DualEncoder, setting: int | None, switch: int
) -> None:
    framework, ids = base_alone(encoders, 5, all_negatives_steps=setting), [0, 1, 2, 3]
    with torch.no_grad():
        values = [float(framework(*batch(ids), step)["base"]) for step in range(8)]
        mean, hardest = (float(expected_loss(encoders, ids, kind)) for kind in (False, True))
    assert hardest > mean + 1e-3
    assert values == pytest.approx([mean] * switch + [hardest] * (8 - switch), abs=1e-5)


@pytest.mark.parametrize(("setting", "switch"), [(None, 0), (3, 3)])
def test_negatives_are_drawn_by_distance_after_the_steps_with_all_of_them(
    encoders: DualEncoder, setting: int | None, switch: int
) -> None:
    drawn = {"negatives": "distance-weighted", "density_dimension": 4, "cutoff": 2.0}
    framework, ids = base_alone(encoders, 5, all_negatives_steps=setting, **drawn), [0, 1, 2, 3]
    with torch.no_grad():
        values = [float(framework(*batch(ids), step)["base"]) for step in range(6)]
        mean = float(expected_loss(encoders, ids, hardest=False))
    assert [abs(value - mean) < 1e-5 for value in values] == [True] * switch + [False] * (6 - switch)
    assert len(set(values[switch:])) > 1


def test_pairs_of_one_image_only_have_no_loss(encoders: DualEncoder) -> None:
    losses = base_alone(encoders)(*batch([4, 4, 4, 4]), 0)
    assert losses["loss"].item() == 0


def test_bfloat16_leaves_losses_and_weights_in_float32(encoders: DualEncoder) -> None:
    ids = [0, 1, 2, 3, 4, 5]
    plain = base_alone(encoders)(*batch(ids), 0)
    rounded = base_alone(encoders, autocast=torch.bfloat16)(*batch(ids), 0)
    assert {value.dtype for value in rounded.values()} == {torch.float32}
    assert rounded["loss"] != plain["loss"]
    assert rounded["loss"].item() == pytest.approx(plain["loss"].item(), rel=0.05)
    grads = torch.autograd.grad(rounded["loss"], list(encoders.parameters()))
    assert {grad.dtype for grad in grads} == {torch.float32}


def test_embeddings_of_both_towers_have_length_one_and_the_configured_width(encoders: DualEncoder) -> None:
    images, _, _, text, *_ = batch([0, 1, 2, 3])
    for embedding in (encoders.encode_image(images), encoders.encode_text(text)):
        assert embedding.shape == (4, 16)
        torch.testing.assert_close(embedding.norm(dim=1), torch.ones(4))


def test_in_evaluation_an_embedding_does_not_depend_on_the_rest_of_the_batch(encoders: DualEncoder) -> None:
    images, _, _, text, *_ = batch([0, 1, 2, 3])
    encoders.eval()
    with torch.no_grad():
        alone = encoders.encode_image(images[2:3]), encoders.encode_text(text[2:3])
        together = encoders.encode_image(images)[2:3], encoders.encode_text(text)[2:3]
    encoders.train()
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)


def test_a_representation_holds_the_embedding_and_the_local_path(encoders: DualEncoder) -> None:
    images, _, _, text, *_ = batch([0, 1, 2, 3])
    encoders.eval()
    for encoded, embedding in (
        (encoders.represent_image(images), encoders.encode_image(images)),
        (encoders.represent_text(text), encoders.encode_text(text)),
    ):
        assert torch.equal(encoded.embedding, embedding)
        assert encoded.local.shape == (4, 16)
        assert encoded.tokens.shape[::2] == (4, 16)
    encoders.train()
    assert encoded.valid is not None
    assert encoded.valid.shape == encoded.tokens.shape[:2]
