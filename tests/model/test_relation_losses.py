"""L_rel and L_reg against versions written with loops, in float64, and over real processes."""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn
from torch.nn.functional import normalize

from model.aahr.relations import Relations
from model.aahr.relevance import CrossRelevance
from model.collectives import average, gather
from model.config import RelationsConfig
from model.losses.hinge import hinge_loss
from model.losses.relations import GroupHinge, relation_loss, relevance_divergence
from model.losses.tiles import Keys
from tests.model.test_relations import SETTINGS, B, D, N, encoded, nodes, random, relations

MARGIN = 0.2
IDS = torch.tensor([4, 7, 4, 1, 2, 2, 2, 5, 6, 4])
SOME = torch.tensor([True] * 6 + [False, True, True, False])


def group_hinge(ids: torch.Tensor, valid: torch.Tensor, weight: torch.Tensor, hardest: bool) -> GroupHinge:
    """L_base's hinge within a group: (b,) int64 ids, (b,) bool, (b,) weight of each anchor in the mean."""

    def hinge(anchors: torch.Tensor, partners: torch.Tensor, rows: slice, _term: int) -> torch.Tensor:
        keys = Keys(partners, ids[rows], valid[rows])
        return (hinge_loss(anchors, ids[rows], partners, keys, MARGIN, hardest) * weight[rows]).mean()

    return hinge


def rows(seed: int, count: int = B) -> torch.Tensor:
    return normalize(random(count, D, seed=seed), dim=1)


def hinge_with_loops(left: torch.Tensor, right: torch.Tensor, hardest: bool) -> torch.Tensor:
    """Both directions, one group of N after the other; the mean over the valid anchors of all groups."""
    total = torch.zeros((), dtype=torch.float64)
    for i in range(B):
        if not SOME[i]:
            continue
        group = range(N * (i // N), N * (i // N) + N)
        others = [j for j in group if SOME[j] and IDS[j] != IDS[i]]
        for anchors, candidates in ((left, right), (right, left)):
            match = torch.dot(anchors[i], candidates[i])
            terms = [(MARGIN + torch.dot(anchors[i], candidates[j]) - match).clamp(min=0) for j in others]
            if terms:
                total = total + (max(terms) if hardest else sum(terms) / len(terms))
    return total / SOME.sum()


@pytest.mark.parametrize("hardest", [True, False], ids=["hardest", "all"])
def test_relation_loss_is_that_of_the_loops_in_value_and_gradients(hardest: bool) -> None:
    image, text, enhanced_image, enhanced_text = sides = [rows(seed).requires_grad_() for seed in range(4)]
    hinge = group_hinge(IDS, SOME, SOME * (B / SOME.sum()), hardest)
    ours = relation_loss(*sides, N, hinge)
    expected = (
        hinge_with_loops(image, enhanced_text, hardest)
        + hinge_with_loops(enhanced_image, text, hardest)
        + hinge_with_loops(enhanced_image, enhanced_text, hardest)
    )
    assert expected > 0
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-13)
    for mine, theirs in zip(*(torch.autograd.grad(loss, sides) for loss in (ours, expected)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-13)


def test_the_hinge_is_told_which_pairs_and_which_of_the_six_terms() -> None:
    told = []

    def hinge(anchors, partners, rows, term):
        told.append((rows.start, term))
        assert torch.equal(anchors, sides[{0: 0, 1: 3, 2: 2, 3: 1, 4: 2, 5: 3}[term]][rows])
        assert torch.equal(partners, sides[{0: 3, 1: 0, 2: 1, 3: 2, 4: 3, 5: 2}[term]][rows])
        return torch.ones(())

    sides = [rows(seed) for seed in range(4)]
    assert relation_loss(*sides, N, hinge) == 6
    assert sorted(told) == [(start, term) for start in (0, N) for term in range(6)]


def divergence_with_loops(relevance: list[list], guide: list[list], keep: list[int]) -> dict[int, torch.Tensor]:
    """KL(softmax of the row of relevance || softmax of the row of the guide), over the columns kept."""
    found = {}
    for i in keep:
        first = sum(torch.exp(relevance[i][j]) for j in keep)
        second = sum(math.exp(guide[i][j]) for j in keep)
        found[i] = sum(
            torch.exp(relevance[i][j])
            / first
            * (relevance[i][j] - torch.log(first) - guide[i][j] + math.log(second))
            for j in keep
        )
    return found


def test_regulariser_is_that_of_the_loops_in_value_and_gradients() -> None:
    image, text = (side.requires_grad_() for side in nodes())
    cross = CrossRelevance(*(random(2, N, N, seed=seed).requires_grad_() for seed in range(4)))
    ours = relevance_divergence(cross, image, text, SOME)
    expected = torch.zeros(B, dtype=torch.float64)
    for number in range(2):
        keep = [i for i in range(N) if SOME[N * number + i]]
        guide = [
            [math.exp(-float((image[N * number + i] - text[N * number + j]).detach().norm())) for j in range(N)]
            for i in range(N)
        ]
        forth = divergence_with_loops(list(cross.i2t[number]), guide, keep)
        back = divergence_with_loops(
            list(cross.t2i[number]), [list(column) for column in zip(*guide, strict=True)], keep
        )
        for i in keep:
            expected[N * number + i] = forth[i] + back[i]
    assert ours.shape == (B,)
    assert (expected[SOME] > 0).all()
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-13)
    weight = random(B, seed=9)
    sides = [cross.i2t, cross.t2i]
    mine, theirs = (torch.autograd.grad((out * weight).sum(), sides) for out in (ours, expected))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)
    assert torch.autograd.grad(ours.sum(), [image, text], allow_unused=True) == (None, None)


def test_regulariser_is_zero_where_relevance_is_the_nearness_of_the_local_embeddings() -> None:
    image, text = nodes()
    nearness = torch.stack(
        [torch.exp(-torch.cdist(image[span], text[span])) for span in (slice(0, N), slice(N, B))]
    )
    cross = CrossRelevance(nearness + 3, nearness.mT - 2, nearness, nearness.mT)  # a softmax knows no shift
    found = relevance_divergence(cross, image, text, torch.ones(B, dtype=torch.bool))
    torch.testing.assert_close(found, torch.zeros(B, dtype=torch.float64), rtol=0, atol=1e-14)


def test_filling_pairs_do_not_change_the_regulariser_and_get_no_gradient() -> None:
    cross = CrossRelevance(*(random(2, N, N, seed=seed).requires_grad_() for seed in range(4)))
    image, text = nodes()
    before = relevance_divergence(cross, image, text, SOME)
    before.sum().backward()
    ignored = ~SOME.view(2, N)
    other = [side.detach().clone() for side in cross]
    for side, original in zip(other, cross, strict=True):
        side.transpose(1, 2)[ignored], side[ignored] = 50.0, -9.0
        if original.grad is not None:
            assert original.grad.any()
            assert not original.grad[ignored].any()
            assert not original.grad.transpose(1, 2)[ignored].any()
    image[~SOME], text[~SOME] = image[0].clone(), -text[1]
    assert torch.equal(relevance_divergence(CrossRelevance(*other), image, text, SOME), before)


@pytest.mark.parametrize("extreme", [1e4, -1e4, 0.0])
def test_regulariser_is_finite_for_extreme_relevance_and_for_a_group_that_only_fills(extreme: float) -> None:
    cross = CrossRelevance(*(extreme * torch.eye(N).repeat(2, 1, 1) for _ in range(4)))
    cross.i2t.requires_grad_()
    image, text = (side.float() for side in nodes())
    found = relevance_divergence(cross, image, text, torch.arange(B) < N)
    found.sum().backward()
    assert cross.i2t.grad is not None
    assert torch.isfinite(found).all()
    assert torch.isfinite(cross.i2t.grad).all()
    assert not found[N:].any()


def test_regulariser_trains_the_learned_relevance_and_nothing_with_the_average() -> None:
    valid = torch.ones(B, dtype=torch.bool)
    for kind in ("learned", "average"):
        image, text = encoded()
        for part in (image.local, image.tokens, text.local, text.tokens):
            part.requires_grad_()
        module = relations(SETTINGS.model_copy(update={"relevance": kind}))
        loss = relevance_divergence(module(image, text, valid).cross, image.local, text.local, valid).sum()
        if kind == "average":
            assert not loss.requires_grad
            continue
        loss.backward()
        assert all(p.grad is not None and p.grad.any() for p in module.relevance.parameters())
        assert all(part.grad is None for part in (image.local, image.tokens, text.local, text.tokens))


def terms(module: Relations, own: slice, settings: RelationsConfig, valid: torch.Tensor) -> torch.Tensor:
    """L_rel and L_reg of the pairs of one rank, as a trainer calls them."""
    image, text = encoded(4 * N)
    image, text = (
        type(s)(s.embedding[own], s.local[own], s.tokens[own], None if s.valid is None else s.valid[own])
        for s in (image, text)
    )
    ids, valid = torch.arange(4 * N)[own] % 7, valid[own]
    everyone = gather(valid.long())
    weight = valid * (len(everyone) / everyone.sum())
    related = module(image, text, valid)
    hinge = group_hinge(ids, valid, weight, hardest=True)
    loss = relation_loss(image.embedding, text.embedding, related.image, related.text, settings.group, hinge)
    divergence = relevance_divergence(related.cross, image.local, text.local, valid)
    return torch.stack([loss, (divergence * weight).mean()])


def measured(number: int, world: int) -> tuple[torch.Tensor, torch.Tensor]:
    module = relations()
    size = 4 * N // world
    found = terms(module, slice(number * size, number * size + size), SETTINGS, torch.arange(4 * N) < 4 * N - 3)
    found.sum().backward()
    grads = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
    return average(found), average(grads)


def measure(number: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=world)
    found = measured(number, world)
    dist.barrier()
    dist.destroy_process_group()
    torch.save(found, Path(folder) / f"{number}.pt")


def test_values_and_gradients_of_two_processes_are_those_of_one(tmp_path: Path) -> None:
    spawn(measure, (2, str(tmp_path)), nprocs=2)
    alone = measured(0, 1)
    assert (alone[0] > 0).all()
    for number in range(2):
        for ours, expected in zip(torch.load(tmp_path / f"{number}.pt"), alone, strict=True):
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-13)
