"""The instance head and the consensus-aware embedding against versions written with loops, in float64."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from model.amsps.consensus import Consensus, mix_labels
from model.amsps.head import InstanceHead
from model.amsps.pooling import MeanQueryPooling
from model.config import ConsensusConfig, ConsensusLossConfig
from model.features import Features
from model.losses.consensus import concept_divergence, consensus_loss

D, Q, WIDTH = 6, 5, 4
CONFIG = ConsensusConfig(concepts="concepts.json", sharpness=7.0)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def grads(value: torch.Tensor, tensors: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    weights = random(*value.shape, seed=99)
    return torch.autograd.grad((value * weights).sum(), tensors)


def pooled_with_loops(module: MeanQueryPooling, tokens: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    rows = []
    for item, keep in zip(tokens, valid, strict=True):
        real = [token for token, kept in zip(item, keep, strict=True) if kept]
        mean = sum(real) / len(real)
        scores = []
        for token in real:
            local = torch.tanh(module.local.weight @ token + module.local.bias)
            query = torch.tanh(module.mean.weight @ mean + module.mean.bias)
            scores.append(torch.dot(module.score.weight[0], local * query).exp())
        rows.append(sum(score * token for score, token in zip(scores, real, strict=True)) / sum(scores))
    return torch.stack(rows)


VALID = torch.tensor([[True, True, True, True], [True, False, True, False], [False, False, False, True]])


@pytest.mark.parametrize("valid", [VALID, None], ids=["padded", "whole"])
def test_pooling_is_that_of_the_loops(valid: torch.Tensor | None) -> None:
    torch.manual_seed(0)
    module = MeanQueryPooling(D).double()
    tokens = random(3, 4, D).requires_grad_()
    tensors = [tokens, *module.parameters()]
    ours = module(tokens, valid)
    theirs = pooled_with_loops(module, tokens, torch.ones(3, 4, dtype=torch.bool) if valid is None else valid)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)
    for mine, expected in zip(grads(ours, tensors), grads(theirs, tensors), strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-13)


def test_padded_tokens_change_nothing_and_get_no_gradient() -> None:
    torch.manual_seed(0)
    head = InstanceHead(D, WIDTH).double()
    tokens = random(3, 4, WIDTH)
    other = torch.where(VALID.unsqueeze(-1), tokens, 1e6).requires_grad_()
    embedding = head(Features(random(3, 2), other, VALID)).embedding
    assert torch.equal(embedding, head(Features(random(3, 2), tokens, VALID)).embedding)
    (grad,) = grads(embedding, [other])
    assert not grad[~VALID].any()
    assert grad[VALID].any()


def test_instance_embeddings_have_length_1_in_float32_also_under_autocast() -> None:
    head = InstanceHead(D, WIDTH)
    with torch.autocast("cpu", torch.bfloat16):
        embedding = head(Features(torch.zeros(3, 2), random(3, 4, WIDTH).float(), VALID)).embedding
    assert embedding.dtype == torch.float32
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(3))


def build(config: ConsensusConfig = CONFIG) -> Consensus:
    torch.manual_seed(1)
    adjacency = torch.rand(Q, Q)
    module = Consensus(random(Q, WIDTH, seed=5), adjacency, D, config).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(2)  # distributions far from uniform
    return module


LABELS = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0]], dtype=torch.bool)


def leaky(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([value if value > 0 else 0.2 * value for value in x])


def embeddings_with_loops(
    module: Consensus, instance: torch.Tensor, labels: torch.Tensor | None
) -> list[torch.Tensor]:
    graph, config = module.graph, module.config
    attention = module.image_attention if labels is None else module.text_attention
    layer = [graph.first.weight @ feature for feature in graph.features]
    hidden = [leaky(sum(graph.adjacency[i, j] * layer[j] for j in range(Q))) for i in range(Q)]
    layer = [graph.second.weight @ row for row in hidden]
    concepts = [sum(graph.adjacency[i, j] * layer[j] for j in range(Q)) for i in range(Q)]
    fused, consensus, distributions = [], [], []
    for row, x in enumerate(instance):
        scores = [
            (attention.score * (attention.concept.weight @ z) * (attention.instance.weight @ x)).sum()
            for z in concepts
        ]
        terms = [(config.sharpness * score).exp() for score in scores]
        a = [term / sum(terms) for term in terms]
        if labels is not None and labels[row].any():
            named = [math.exp(config.sharpness * float(label)) for label in labels[row]]
            r = config.label_share
            a = [r * name / sum(named) + (1 - r) * share for name, share in zip(named, a, strict=True)]
        c = normalize(sum(share * normalize(z, dim=0) for share, z in zip(a, concepts, strict=True)), dim=0)
        w = config.instance_share
        consensus.append(c)
        distributions.append(torch.stack(a))
        fused.append(normalize(w * x + (1 - w) * c, dim=0))
    return [torch.stack(rows) for rows in (fused, consensus, distributions)]


@pytest.mark.parametrize("labels", [LABELS, None], ids=["texts", "images"])
def test_consensus_is_that_of_the_loops(labels: torch.Tensor | None) -> None:
    module = build()
    instance = normalize(random(3, D), dim=1).requires_grad_()
    attention = module.image_attention if labels is None else module.text_attention
    tensors = [instance, *module.graph.parameters(), *attention.parameters()]
    concepts = module.concepts()
    found = module.images(instance, concepts) if labels is None else module.texts(instance, concepts, labels)
    ours = [found.fused, found.consensus, found.log_concepts.exp()]
    theirs = embeddings_with_loops(module, instance, labels)
    assert found.instance is instance
    assert ours[2].max() > 0.4
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-12)
    ours_grads, theirs_grads = grads(torch.cat(ours, dim=1), tensors), grads(torch.cat(theirs, dim=1), tensors)
    for mine, expected in zip(ours_grads, theirs_grads, strict=True):
        assert expected.any()
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-11)


def test_a_caption_that_names_no_concept_is_embedded_as_without_labels() -> None:
    module, instance = build(), normalize(random(3, D), dim=1)
    plain = build(CONFIG.model_copy(update={"label_share": 0.0}))
    unmixed = plain.texts(instance, plain.concepts(), LABELS)
    mixed = module.texts(instance, module.concepts(), LABELS)
    for one, other in zip(mixed, unmixed, strict=True):
        torch.testing.assert_close(one[1], other[1], rtol=0, atol=0)
    assert not torch.isclose(mixed.consensus[[0, 2]], unmixed.consensus[[0, 2]]).all(dim=1).any()


def test_named_concepts_have_their_share_and_the_distribution_sums_to_1() -> None:
    mixed = mix_labels(torch.log_softmax(random(3, Q), dim=1), LABELS, 0.4, 10.0).exp()
    torch.testing.assert_close(mixed.sum(dim=1), torch.ones(3, dtype=torch.float64))
    assert (mixed[0, [0, 2]] > 0.199).all()
    assert mixed[2, 1] > 0.399


@pytest.mark.parametrize("factor", [1e-3, 1e2, 1e4])
def test_divergence_and_its_gradient_are_finite_whatever_the_scores(factor: float) -> None:
    module = build().float()
    with torch.no_grad():
        module.image_attention.score.mul_(factor)
        module.text_attention.score.mul_(factor)
    instance = normalize(random(3, D), dim=1).float().requires_grad_()
    concepts = module.concepts()
    image, text = module.images(instance, concepts), module.texts(instance.flip(0), concepts, LABELS)
    divergence = concept_divergence(text.log_concepts, image.log_concepts)
    divergence.sum().backward()
    assert divergence.isfinite().all()
    assert (divergence >= -1e-6).all()
    assert instance.grad is not None
    assert instance.grad.isfinite().all()


def test_divergence_is_that_of_the_loops_and_zero_between_equals() -> None:
    text = torch.log_softmax(random(3, Q), dim=1).requires_grad_()
    image = torch.log_softmax(random(3, Q, seed=1), dim=1).requires_grad_()
    expected = torch.stack(
        [
            sum(t.exp() * (t.exp() / i.exp()).log() for t, i in zip(*rows, strict=True))
            for rows in zip(text, image, strict=True)
        ]
    )
    ours = concept_divergence(text, image)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-14)
    for mine, theirs in zip(grads(ours, [text, image]), grads(expected, [text, image]), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-14)
    assert not concept_divergence(text, text).any()


def test_losses_count_3_to_5_to_1_and_the_divergence_2() -> None:
    ones = torch.ones(2)
    total = consensus_loss(ones, 10 * ones, 100 * ones, 1000 * ones, ConsensusLossConfig())
    assert total.tolist() == [2153, 2153]


def test_items_are_embedded_independently_of_each_other() -> None:
    module, instance = build(), normalize(random(3, D), dim=1)
    together = module.texts(instance, module.concepts(), LABELS)
    for row in range(3):
        alone = module.texts(instance[row : row + 1], module.concepts(), LABELS[row : row + 1])
        torch.testing.assert_close(alone.fused[0], together.fused[row], rtol=0, atol=1e-14)


def test_features_and_graph_are_in_the_state_dict() -> None:
    module, other = build(), Consensus(torch.zeros(Q, WIDTH), torch.zeros(Q, Q), D, CONFIG).double()
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.concepts(), module.concepts())
