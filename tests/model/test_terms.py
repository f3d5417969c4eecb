"""What each term of a loss takes of a step, against loops over that step: value, gradients, draws."""

import math
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from model.config import (
    AhrlConfig,
    BaseLossConfig,
    ConsensusLossConfig,
    MomentumContrastConfig,
    PrototypeConfig,
    RegulariserConfig,
    RelationsConfig,
)
from model.losses.ahrl import ahrl
from model.losses.hinge import distance_weighted_hinge
from model.losses.keyed_noise import PairNoise
from model.losses.pairs import Pairs
from model.losses.running_quantile import BINS
from model.step import Step, View
from model.terms import ranking
from model.terms.momentum_contrast import MomentumContrastTerm
from model.terms.prototypes import PrototypeTerm
from model.terms.ranking import AhrlRanker, HingeRanker, RankingTerm
from model.terms.relations import RelationsTerm
from tests.model.pairs import assert_same_gradients
from tests.model.steps import FIRST, B, D, G, M, step_of, weighted
from tests.model.test_sinkhorn import sinkhorn_with_loops

WEIGHTS = ConsensusLossConfig(fused_weight=2, instance_weight=3, consensus_weight=5, divergence_weight=7)
DRAWN = BaseLossConfig(negatives="distance-weighted", margin=0.4, cutoff=1.9, density_dimension=6)


def test_prototypes_of_the_global_batch_are_predicted_from_the_other_side() -> None:
    config = PrototypeConfig(count=3, temperature=0.2, sinkhorn_epsilon=0.3, sinkhorn_iterations=2)
    term, step = PrototypeTerm(config, D).double(), step_of()
    own, batch = step.views[0].own, step.views[0].batch
    prototypes = normalize(term.bank.prototypes, dim=1)
    shares = [
        sinkhorn_with_loops((side @ prototypes.T).detach(), [True] * G, 0.3, 2)
        for side in (batch.images, batch.texts)
    ]
    of_images, of_texts = (share[FIRST : FIRST + B] for share in shares)
    expected = []
    for i in range(B):
        loss = torch.zeros((), dtype=torch.float64)
        for share, query in ((of_texts[i], own.images[i]), (of_images[i], own.texts[i])):
            scores = [torch.dot(query, one) / 0.2 for one in prototypes]
            total = torch.log(sum(map(torch.exp, scores), torch.zeros(())))
            loss = loss - sum(share[k] * (scores[k] - total) for k in range(3))
        expected.append(loss)
    inputs = [own.images, own.texts, term.bank.prototypes]
    assert_same_gradients(term(step)["prototypes"], weighted(step, expected), inputs)


def contrast_with_loops(step: Step, queries: tuple[torch.Tensor, torch.Tensor], temperature: float) -> torch.Tensor:
    view, expected = step.views[0], []
    assert view.memory is not None
    queue, keys = view.memory.queue, view.memory.own
    assert isinstance(queue, Pairs)
    for i in range(B):
        loss = torch.zeros((), dtype=torch.float64)
        sides = ((queries[0], keys.texts, queue.texts), (queries[1], keys.images, queue.images))
        for query, key, others in sides:
            kept = [j for j in range(M) if queue.valid[j] and queue.ids[j] != view.own.ids[i]]
            logits = [torch.dot(query[i], one) / temperature for one in (key[i], *(others[j] for j in kept))]
            loss = loss + torch.log(sum(map(torch.exp, logits), torch.zeros(()))) - logits[0]
        expected.append(loss)
    return weighted(step, expected)


@pytest.mark.parametrize("query", ["fused", "local"])
def test_momentum_contrast_is_against_the_queue_of_the_other_side(query: str) -> None:
    config = MomentumContrastConfig.model_validate({"temperature": 0.3, "query": query})
    step = step_of()
    own = step.views[0].own
    queries = (own.images, own.texts) if query == "fused" else (step.image.local, step.text.local)
    ours = MomentumContrastTerm(config)(step)["momentum_contrast"]
    assert_same_gradients(ours, contrast_with_loops(step, queries, 0.3), list(queries))


def test_momentum_contrast_waits_for_the_queue_unless_it_has_a_start_step() -> None:
    step = step_of(full=False)
    assert MomentumContrastTerm(MomentumContrastConfig())(step)["momentum_contrast"] == 0
    started = MomentumContrastTerm(MomentumContrastConfig(start_step=0, temperature=0.3))
    own = step.views[0].own
    ours = started(step)["momentum_contrast"]
    assert_same_gradients(ours, contrast_with_loops(step, (own.images, own.texts), 0.3), [own.images, own.texts])


def hardest_with_loops(
    anchors: torch.Tensor, partners: torch.Tensor, view: View, others: Pairs, margin: float, i: int, side: str
) -> torch.Tensor:
    match = torch.dot(anchors[i], partners[i])
    ids, keys = others.ids, getattr(others, side)
    terms = [margin + torch.dot(anchors[i], keys[j]) - match for j in range(len(ids)) if ids[j] != view.own.ids[i]]
    return max(terms).clamp(min=0)


def test_the_hinge_is_against_the_global_batch_on_each_kind_of_embedding_by_its_weight() -> None:
    config, step = BaseLossConfig(margin=0.4, all_negatives_steps=0), step_of()
    term = RankingTerm("base", 1.0, 0, [HingeRanker(config, 1)] * 3, WEIGHTS)
    assert step.concepts is not None
    of_images, of_texts = step.concepts
    expected = []
    for i in range(B):
        loss = torch.zeros((), dtype=torch.float64)
        for weight, view in zip((2, 3, 5), step.views, strict=True):
            own = view.own
            to_texts = hardest_with_loops(own.images, own.texts, view, view.batch, 0.4, i, "texts")
            to_images = hardest_with_loops(own.texts, own.images, view, view.batch, 0.4, i, "images")
            loss = loss + weight * (to_texts + to_images)
        divergence = sum(
            math.exp(t) * (of_texts[i, k] - of_images[i, k]) for k, t in enumerate(of_texts[i].tolist())
        )
        expected.append(loss + 7 * divergence)
    inputs = [
        tensor for view in step.views for pairs in (view.own, view.batch) for tensor in (pairs.images, pairs.texts)
    ]
    assert_same_gradients(term(step)["base"], weighted(step, expected), [*inputs, of_images])


class Told(list[dict[str, Any]]):
    """Calls of a function in a module, which runs as ever."""

    def __init__(self, patch: pytest.MonkeyPatch, module: Any, name: str) -> None:
        super().__init__()
        function = getattr(module, name)

        def tell(*args: Any, **kwargs: Any) -> Any:
            self.append({"args": args, **kwargs})
            return function(*args, **kwargs)

        patch.setattr(module, name, tell)


def test_draws_by_distance_are_keyed_by_step_place_and_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    noises, calls = Told(monkeypatch, ranking, "PairNoise"), Told(monkeypatch, ranking, "distance_weighted_hinge")
    step = step_of(views=1)
    view = step.views[0]
    ours = HingeRanker(DRAWN, 1)(view, step)
    expected = torch.zeros(B, dtype=torch.float64)
    own, batch = view.own, view.batch
    sides = ((own.images, own.texts, batch.text_keys), (own.texts, own.images, batch.image_keys))
    for stream, (anchors, positives, keys) in enumerate(sides):
        noise = PairNoise(step.positions, G, step.seed, step.number, stream)
        expected = expected + distance_weighted_hinge(anchors, own.ids, positives, keys, 0.4, noise, 1.9, 6)
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)
    assert [one["args"][2:] for one in noises] == [(17, 3, 0), (17, 3, 1)]
    assert [one["args"][-2:] for one in calls] == [(1.9, 6)] * 2


def relations_term(step: Step, base: BaseLossConfig) -> RelationsTerm:
    config = RelationsConfig(group=2, heads=2, dropout=0.0, gcn_dropout=0.0)
    torch.manual_seed(0)
    return RelationsTerm(config, RegulariserConfig(), D, HingeRanker(base, 1)).double()


def test_relations_rank_the_retrieval_embeddings_with_the_enhanced_ones_of_the_group() -> None:
    step = step_of()
    term = relations_term(step, BaseLossConfig(margin=0.4, all_negatives_steps=0))
    own, related = step.views[0].own, term.relations(step.image, step.text, step.valid)
    sides = ((own.images, related.text), (related.image, own.texts), (related.image, related.text))
    expected = []
    for i in range(B):
        loss = torch.zeros((), dtype=torch.float64)
        for left, right in sides:
            for anchors, partners in ((left, right), (right, left)):
                other = i + 1 - 2 * (i % 2)  # of the group of two
                gap = torch.dot(anchors[i], partners[other]) - torch.dot(anchors[i], partners[i])
                loss = loss + (0.4 + gap).clamp(min=0) * (own.ids[i] != own.ids[other])
        expected.append(loss)
    parameters = [one for name, one in term.relations.named_parameters() if not name.startswith("relevance")]
    found = term(step)
    assert_same_gradients(found["relations"], weighted(step, expected), [own.images, own.texts, *parameters])
    divergences = []
    for i in range(B):
        members, divergence = range(i // 2 * 2, i // 2 * 2 + 2), torch.zeros((), dtype=torch.float64)
        for cross, mine, theirs in (
            (related.cross.i2t, step.image.local, step.text.local),
            (related.cross.t2i, step.text.local, step.image.local),
        ):
            relevance = cross[i // 2, i % 2].log_softmax(0)
            guide = (
                torch.stack([torch.exp(-torch.dist(mine[i], theirs[j])) for j in members]).detach().log_softmax(0)
            )
            divergence = divergence + sum(relevance[k].exp() * (relevance[k] - guide[k]) for k in range(2))
        divergences.append(divergence)
    torch.testing.assert_close(found["regulariser"], weighted(step, divergences), rtol=1e-9, atol=1e-12)


def test_relations_draw_from_streams_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    step = step_of()
    noises = Told(monkeypatch, ranking, "PairNoise")
    relations_term(step, DRAWN)(step)
    streams = (2, 3, 2, 3, 4, 5, 4, 5, 6, 7, 6, 7)  # of either group in turn
    assert [one["args"][2:] for one in noises] == [(17, 3, stream) for stream in streams]
    assert [one["args"][0].tolist() for one in noises] == [[4, 5], [4, 5], [6, 7], [6, 7]] * 3


def ahrl_ranker(**settings: Any) -> AhrlRanker:
    config = AhrlConfig(quantile=0.8, quantile_decay=0.7, candidates=2, **settings)
    return AhrlRanker(config, HingeRanker(BaseLossConfig(all_negatives_steps=2), 1))


def test_ahrl_is_given_the_view_the_threshold_and_what_keys_its_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    step, ranker = step_of(views=1), ahrl_ranker()
    ranker.agreement.update(torch.arange(BINS))
    threshold = ranker.agreement.value
    assert -1 < threshold < 1
    view = step.views[0]
    expected = ahrl(view.own, view.batch, step.positions, view.memory, threshold, ranker.config, seed=17, step=3)
    torch.testing.assert_close(ranker(view, step), expected.loss, rtol=0, atol=0)
    calls = Told(monkeypatch, ranking, "ahrl")
    ranker(view, step)
    assert (calls[0]["seed"], calls[0]["step"]) == (17, 3)
    assert torch.equal(calls[0]["args"][2], step.positions)
    assert calls[0]["args"][4] == threshold
    assert (ranker.agreement.quantile, ranker.agreement.decay) == (0.8, 0.7)


@pytest.mark.parametrize(("number", "memory"), [(4, False), (5, True)])
def test_ahrl_s_levels_of_the_queue_join_at_their_start_step(
    monkeypatch: pytest.MonkeyPatch, number: int, memory: bool
) -> None:
    step, calls = step_of(number, views=1), Told(monkeypatch, ranking, "ahrl")
    ahrl_ranker(start_step=5)(step.views[0], step)
    assert (calls[0]["args"][3] is not None) == memory


def test_each_kind_of_embedding_has_its_own_quantile() -> None:
    rankers = [ahrl_ranker() for _ in range(3)]
    term, step = RankingTerm("ahrl", 1.0, 0, rankers, WEIGHTS), step_of()
    term(step)
    counts = [ranker.counts for ranker in rankers]
    term.advance(3)
    for ranker, seen in zip(rankers, counts, strict=True):
        assert seen is not None
        torch.testing.assert_close(ranker.agreement.histogram, (0.3 * seen / seen.sum()).float())
    assert len({tuple(one.agreement.histogram.nonzero().flatten().tolist()) for one in rankers}) == 3
