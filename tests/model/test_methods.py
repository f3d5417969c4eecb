"""Whole methods in one process: which terms they have, when these start, what they keep between steps."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from model.config import LossConfig, ModelConfig
from model.encoders import DualEncoder
from model.frameworks import Framework
from model.tokenizer import build_tokenizer

WORDS = ("dog", "cat", "red", "run")
GROUP, BATCH = 4, 8
MODEL = {
    "architecture": "itm-tiny",
    "embed_dim": 16,
    "norm_group": GROUP,
    "aahr": {"fragment_heads": 2, "pooling_heads": 2, "dropout": 0.0},
}
LOSS: dict[str, dict[str, Any]] = {
    "base": {"all_negatives_steps": 1},
    "prototypes": {"count": 3, "start_step": 2},
    "relations": {"start_step": 3, "group": GROUP, "heads": 2, "dropout": 0.0, "gcn_dropout": 0.0},
    "regulariser": {"start_step": 4},
    "queue": {"size": 2 * BATCH},
    "ahrl": {"candidates": 4, "quantile": 0.9},
}
METHODS = {
    "clip": {"clip"},
    "siglip": {"siglip"},
    "aahr": {"base", "prototypes", "momentum_contrast", "relations", "regulariser"},
    "amsps": {"ahrl"},
    "aahr+amsps": {"ahrl", "prototypes", "momentum_contrast", "relations", "regulariser"},
}
Inputs = tuple[torch.Tensor, None, None, torch.Tensor, torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module")
def concepts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("concepts") / "concepts.json"
    together = [[0, 1, 2, 1], [1, 0, 1, 1], [2, 1, 0, 0], [1, 1, 0, 0]]
    listed = [{"word": word, "count": 4} for word in WORDS]
    path.write_text(json.dumps({"format_version": 1, "graph": {}, "concepts": listed, "co_occurrence": together}))
    return path


def method(
    name: str, concepts: Path | None = None, autocast: torch.dtype | None = None, **loss: dict[str, Any]
) -> Framework:
    torch.manual_seed(0)
    settings = {**MODEL, "framework": name, "consensus": {"concepts": str(concepts) if concepts else None}}
    model = ModelConfig.model_validate(settings)
    merged = {key: LOSS.get(key, {}) | loss.get(key, {}) for key in LOSS.keys() | loss.keys()}
    terms = LossConfig.model_validate(merged)
    encoders = DualEncoder(model)
    return Framework(encoders, model, terms, steps_per_epoch=4, total_steps=20, seed=5, autocast=autocast).train()


def batch(number: int, labels: int = 0, ids: list[int] | None = None, valid: list[bool] | None = None) -> Inputs:
    generator = torch.Generator().manual_seed(number)
    images = torch.randint(256, (BATCH, 32, 32, 3), dtype=torch.uint8, generator=generator)
    text = build_tokenizer("itm-tiny")([f"{WORDS[place % 4]} {number} {place}" for place in range(BATCH)])
    named = torch.arange(BATCH).unsqueeze(1) % 4 == torch.arange(4)
    text = torch.cat([text, named[:, :labels].long()], dim=1)
    own = [BATCH * number + place for place in range(BATCH)] if ids is None else ids
    return images, None, None, text, torch.tensor(own), torch.tensor(valid or [True] * BATCH)


def run(framework: Framework, steps: int, labels: int = 0, first: int = 0) -> list[dict[str, torch.Tensor]]:
    """Steps of plain gradient descent, small enough to change little."""
    rows = []
    for step in range(first, first + steps):
        losses = framework(*batch(step, labels), step)
        losses["loss"].backward()
        with torch.no_grad():
            for parameter in framework.parameters():
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=1e-3)
                    parameter.grad = None
        framework.advance(step)
        rows.append(losses)
    return rows


@pytest.mark.parametrize("with_concepts", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_the_weighted_sum_of_its_terms(name: str, with_concepts: bool, concepts: Path) -> None:
    framework = method(name, concepts if with_concepts else None)
    labels = framework.encoders.num_concepts
    assert labels == (4 if with_concepts and name not in ("clip", "siglip") else 0)
    last = run(framework, 6, labels)[-1]
    assert METHODS[name] <= last.keys()
    weights = {"prototypes": 0.2, "regulariser": 10.0}
    total = sum(weights.get(term, 1.0) * float(last[term]) for term in METHODS[name])
    assert float(last["loss"].detach()) == pytest.approx(total, rel=1e-5)
    assert all(torch.isfinite(value) for value in last.values())
    assert [value.requires_grad for value in last.values()].count(True) == 1


def test_terms_join_at_their_start_step_and_with_the_full_queue() -> None:
    rows = run(method("aahr"), 6)
    assert [("prototypes" in row) for row in rows] == [False] * 2 + [True] * 4
    assert [("relations" in row) for row in rows] == [False] * 3 + [True] * 3
    # 16 slots are full after two batches of 8
    assert [float(row["momentum_contrast"]) > 0 for row in rows] == [False] * 2 + [True] * 4
    assert float(rows[3]["loss"].detach()) == pytest.approx(
        float(rows[3]["base"] + 0.2 * rows[3]["prototypes"] + rows[3]["momentum_contrast"] + rows[3]["relations"]),
        rel=1e-5,
    )


@pytest.mark.parametrize("term", ["prototypes", "momentum_contrast"])
def test_a_term_of_weight_zero_is_not_built(term: str) -> None:
    framework = method("aahr", **{term: {"weight": 0.0}})
    assert term not in framework.terms
    assert term not in run(framework, 4)[-1]


def test_without_queue_or_momentum_terms_there_are_no_momentum_encoders() -> None:
    assert method("aahr", momentum_contrast={"weight": 0.0}).momentum is None
    levels = {"candidate": False, "pair": False, "adaptive": False, "mining": False}
    assert method("amsps", ahrl=levels).queue is None
    assert method("amsps").queue is not None
    assert method("clip").momentum is None


def test_with_levels_2_to_5_off_amsps_trains_on_the_hinge() -> None:
    levels = {"candidate": False, "pair": False, "adaptive": False, "mining": False}
    aahr_off = {key: {"weight": 0.0} for key in ("prototypes", "momentum_contrast", "relations", "regulariser")}
    mining, plain = method("aahr+amsps", ahrl=levels, **aahr_off), method("aahr", **aahr_off)
    for ours, theirs in zip(run(mining, 3), run(plain, 3), strict=True):
        assert float(ours["ahrl"]) == pytest.approx(float(theirs["base"]), rel=1e-6)


@pytest.mark.parametrize("name", ["aahr", "amsps", "aahr+amsps"])
def test_pairs_that_only_fill_a_batch_change_nothing(name: str, concepts: Path) -> None:
    """Others in their place: the losses, their gradients and what is kept stay as they are."""
    found = []
    for other in (0, 90):
        framework = method(name, concepts)
        run(framework, 5, 4)
        inputs, fill = batch(5, 4, valid=[True] * 6 + [False] * 2), batch(other, 4)
        if other:  # batch norm of the image's local projection sees them all: only captions are exchanged
            inputs[3][6:] = fill[3][6:]
            inputs[4][6:] = fill[4][6:]
        losses = framework(*inputs, 5)
        weights = [p for n, p in framework.named_parameters() if p.requires_grad and "proj" not in n]
        gradients = torch.autograd.grad(losses["loss"], weights, allow_unused=True)
        framework.advance(5)
        assert framework.queue is not None
        kept = [framework.queue.images, framework.queue.texts, framework.queue.ids, framework.queue.head]
        found.append((losses["loss"].detach(), [g for g in gradients if g is not None], [k.clone() for k in kept]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["clip", "siglip", "aahr", "amsps", "aahr+amsps"])
def test_pairs_of_one_image_are_no_negatives_in_any_ranking(name: str) -> None:
    framework = method(name, prototypes={"weight": 0.0}, regulariser={"weight": 0.0}, ahrl={"mining": False})
    run(framework, 3)
    losses = framework(*batch(3, ids=[7] * BATCH), 3)
    ranked = {"clip": "clip", "siglip": "siglip", "aahr": "base"}.get(name, "ahrl_hard")
    if name == "siglip":  # what is left is each pair's own decision
        assert float(losses[ranked]) < float(framework(*batch(3), 3)[ranked])
    else:
        assert float(losses[ranked]) == pytest.approx(0, abs=1e-6)
    assert float(losses.get("relations", torch.zeros(()))) == 0


def test_the_queue_the_average_and_the_bank_follow_the_steps() -> None:
    framework = method("aahr")
    assert framework.queue is not None
    assert framework.momentum is not None
    assert framework.prototypes is not None
    before = framework.momentum.module.image_head.global_projection.fc.weight.clone()
    run(framework, 3)
    assert framework.queue.ids.tolist() == [*range(16, 24), *range(8, 16)]
    assert int(framework.queue.filled) == 16
    online = framework.encoders.image_head.global_projection.fc.weight
    average = framework.momentum.module.image_head.global_projection.fc.weight
    assert 0 < (average - before).abs().sum() < (online - before).abs().sum()
    assert int(framework.prototypes.bank.last_used.max()) == 2
    assert not framework.momentum.training


def test_a_restart_keeps_the_weights_and_forgets_the_batches() -> None:
    framework = method("aahr+amsps")
    run(framework, 4)
    weights = {name: value.clone() for name, value in framework.encoders.state_dict().items()}
    framework.restart()
    assert framework.queue is not None
    assert framework.momentum is not None
    assert not framework.queue.valid.any()
    assert all(torch.equal(value, weights[name]) for name, value in framework.momentum.module.state_dict().items())
    assert all(torch.equal(value, weights[name]) for name, value in framework.encoders.state_dict().items())


def test_with_consensus_retrieval_uses_the_fused_embedding(concepts: Path) -> None:
    framework = method("amsps", concepts).eval()
    images, _, _, text, *_ = batch(0, 4)
    encoders = framework.encoders
    with torch.no_grad():
        fused = encoders.image_consensus(encoders.represent_image(images)).fused
        torch.testing.assert_close(encoders.encode_image(images), fused)
        named, unnamed = (
            encoders.encode_text(text),
            encoders.encode_text(torch.cat([text[:, :-4], 0 * text[:, -4:]], 1)),
        )
        fused = encoders.text_consensus(encoders.represent_text(text), text).fused
        torch.testing.assert_close(named, fused)
    torch.testing.assert_close(named.norm(dim=1), torch.ones(BATCH))
    assert (named - unnamed).abs().max() > 1e-4


def test_the_state_dict_holds_all_that_is_kept() -> None:
    framework, other = method("aahr+amsps"), method("aahr+amsps")
    run(framework, 5)
    other.load_state_dict(framework.state_dict())
    rows = [run(one, 2, first=5) for one in (framework, other)]
    for first, second in zip(*rows, strict=True):
        assert {name: float(value.detach()) for name, value in first.items()} == {
            name: float(value.detach()) for name, value in second.items()
        }
