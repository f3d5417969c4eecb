"""The graph over a group's pairs against one written with loops, in float64."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import layer_norm, normalize

from model.aahr.relations import NeighbourAttention, RelationGraph, Relations, distance_relevance, top_half
from model.aahr.relevance import CrossRelevance
from model.config import RelationsConfig
from model.errors import ModelError
from model.features import Encoded

D, HEADS, N, GROUPS = 8, 2, 5, 2
B = N * GROUPS
MASK_WEIGHT = 1.5
SETTINGS = RelationsConfig(
    group=N, heads=HEADS, mask_weight=MASK_WEIGHT, dropout=0.0, gcn_dropout=0.0, tile=2, relevance="learned"
)


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def scramble(module: torch.nn.Module, seed: int = 5) -> torch.nn.Module:
    """Give norms and biases values that are not the neutral ones that they start with."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return module.double()


def graph(settings: RelationsConfig = SETTINGS) -> RelationGraph:
    torch.manual_seed(0)
    return scramble(RelationGraph(D, settings))


def relations(settings: RelationsConfig = SETTINGS) -> Relations:
    torch.manual_seed(0)
    return scramble(Relations(D, settings))


def cross(groups: int = GROUPS) -> CrossRelevance:
    return CrossRelevance(*(random(groups, N, N, seed=seed) for seed in (11, 12, 13, 14)))


def nodes(rows: int = B) -> tuple[torch.Tensor, torch.Tensor]:
    return normalize(random(rows, D, seed=1), dim=1), normalize(random(rows, D, seed=2), dim=1)


def encoded(rows: int = B, seed: int = 0) -> tuple[Encoded, Encoded]:
    image, text = nodes(rows)
    valid = random(rows, 6, seed=seed + 5) > -0.5
    valid[:, 0] = True
    return (
        Encoded(normalize(random(rows, D, seed=seed + 6), dim=1), image, random(rows, 7, 4, seed=seed + 3), None),
        Encoded(normalize(random(rows, D, seed=seed + 7), dim=1), text, random(rows, 6, 4, seed=seed + 4), valid),
    )


def linear(layer: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return x @ layer.weight.T + layer.bias


def distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return ((a - b) ** 2).sum().sqrt()


def within_with_loops(side: list[torch.Tensor]) -> list[list[torch.Tensor]]:
    return [
        [torch.exp(-distance(a, b)) if i != j else torch.ones((), dtype=torch.float64) for j, b in enumerate(side)]
        for i, a in enumerate(side)
    ]


def kept_with_loops(scores: list[list[float]]) -> list[list[bool]]:
    rows = []
    for row in scores:
        last = sorted(row, reverse=True)[max(len(row) // 2, 1) - 1]
        rows.append([score >= last for score in row])
    return rows


def convolve_with_loops(layer: torch.nn.Module, x: list[torch.Tensor], a: list[list[torch.Tensor]]) -> list:
    outputs = []
    for row in a:
        total = layer.bias
        for weight, node in zip(row, x, strict=True):
            total = total + weight * (layer.linear.weight @ node)
        outputs.append(torch.where(total > 0, total, 0.2 * total))
    return outputs


def attend_with_loops(layer: torch.nn.TransformerEncoderLayer, x: torch.Tensor, mask: list[list]) -> torch.Tensor:
    """A transformer encoder layer, one head and one row at a time; None in the mask: not connected."""
    attention, size = layer.self_attn, D // HEADS
    q, k, v = (x @ attention.in_proj_weight.T + attention.in_proj_bias).split(D, dim=1)
    heads = []
    for head in range(HEADS):
        span, rows = slice(head * size, (head + 1) * size), []
        for i, row in enumerate(mask):
            weights = {
                j: torch.exp(torch.dot(q[i, span], k[j, span]) / size**0.5 + added)
                for j, added in enumerate(row)
                if added is not None
            }
            rows.append(sum(weight * v[j, span] for j, weight in weights.items()) / sum(weights.values()))
        heads.append(torch.stack(rows))
    x = x + linear(attention.out_proj, torch.cat(heads, dim=1))
    x = layer_norm(x, (D,), layer.norm1.weight, layer.norm1.bias)
    forward = linear(layer.linear2, linear(layer.linear1, x).clamp(min=0))
    return layer_norm(x + forward, (D,), layer.norm2.weight, layer.norm2.bias)


def enhance_with_loops(
    module: RelationGraph, image: torch.Tensor, text: torch.Tensor, given: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """One group in which all pairs are valid; `given` is its part of a CrossRelevance."""
    i2t, t2i, i2t_mean, t2i_mean = given
    images, texts, n = list(image), list(text), len(image)
    i2i, t2t = within_with_loops(images), within_with_loops(texts)
    relevance = [[*i2i[i], *i2t[i]] for i in range(n)] + [[*t2i[i], *t2t[i]] for i in range(n)]
    one = convolve_with_loops(module.image_convolution, images, i2i)
    two = convolve_with_loops(module.text_convolution, texts, t2t)
    both = convolve_with_loops(module.shared_convolution, one + two, relevance)
    x = torch.stack([c / (c * c).sum().sqrt() + node for c, node in zip(both, images + texts, strict=True)])
    cosines = [[[torch.dot(a, b).item() for b in side] for a in side] for side in (images, texts)]
    kept = [*map(kept_with_loops, (cosines[0], i2t_mean.tolist(), t2i_mean.tolist(), cosines[1]))]
    connected = [kept[0][i] + kept[1][i] for i in range(n)] + [kept[2][i] + kept[3][i] for i in range(n)]
    mask = [
        [MASK_WEIGHT * relevance[i][j] if connected[i][j] or i == j else None for j in range(2 * n)]
        for i in range(2 * n)
    ]
    enhanced = attend_with_loops(module.attention, x, mask)
    enhanced = enhanced / (enhanced * enhanced).sum(dim=1, keepdim=True).sqrt()
    return enhanced[:n], enhanced[n:]


def test_graph_is_that_of_the_loops_in_value_and_gradients() -> None:
    module = graph()
    raw = [random(B, D, seed=seed).requires_grad_() for seed in (1, 2)]
    image, text = (side / (side * side).sum(dim=1, keepdim=True).sqrt() for side in raw)
    given = cross()
    given.i2t.requires_grad_()
    given.t2i.requires_grad_()
    ours = torch.cat(module(image, text, given, torch.ones(B, dtype=torch.bool)))
    groups = [
        enhance_with_loops(module, image[rows], text[rows], [part[number] for part in given])
        for number, rows in enumerate((slice(0, N), slice(N, B)))
    ]
    expected = torch.cat([side[0] for side in groups] + [side[1] for side in groups])
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    inputs = {"image": raw[0], "text": raw[1], "i2t": given.i2t, "t2i": given.t2i} | dict(module.named_parameters())
    weight = random(2 * B, D, seed=9)
    mine, theirs = (
        torch.autograd.grad((out * weight).sum(), list(inputs.values()), retain_graph=True)
        for out in (ours, expected)
    )
    for name, a, b in zip(inputs, mine, theirs, strict=True):
        assert b.any(), name
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")


def test_enhanced_embeddings_have_length_one() -> None:
    for side in graph()(*nodes(), cross(), torch.ones(B, dtype=torch.bool)):
        torch.testing.assert_close(side.norm(dim=1), torch.ones(B, dtype=torch.float64))


def test_without_gradient_and_in_evaluation_the_values_are_those_of_training() -> None:
    """PyTorch's encoder layer has another path there, which is wrong with a mask of numbers."""
    module, valid = graph(), torch.ones(B, dtype=torch.bool)
    trained = module(*nodes(), cross(), valid)
    with torch.no_grad():
        evaluated = module.eval()(*nodes(), cross(), valid)
    for ours, expected in zip(evaluated, trained, strict=True):
        torch.testing.assert_close(ours, expected.detach(), rtol=0, atol=1e-12)


def test_the_attentions_feed_forward_is_as_wide_as_the_embedding() -> None:
    assert NeighbourAttention(D, HEADS, 0.0).linear1.out_features == D


@pytest.mark.parametrize("setting", [{"gcn_dropout": 0.6}, {"dropout": 0.5}])
def test_dropout_acts_in_training_only(setting: dict[str, float]) -> None:
    module, valid = graph(SETTINGS.model_copy(update=setting)), torch.ones(B, dtype=torch.bool)
    assert not torch.equal(module(*nodes(), cross(), valid)[0], module(*nodes(), cross(), valid)[0])
    module.eval()
    assert torch.equal(module(*nodes(), cross(), valid)[0], module(*nodes(), cross(), valid)[0])


def test_distance_relevance_of_equal_and_opposite_rows_is_finite_with_its_gradient() -> None:
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    relevance = distance_relevance(rows, rows)
    relevance.sum().backward()
    torch.testing.assert_close(relevance[0].detach(), torch.tensor([1.0, 1.0, 2.718281828**-2]), rtol=0, atol=1e-3)
    assert rows.grad is not None
    assert torch.isfinite(rows.grad).all()


@pytest.mark.parametrize(
    ("row", "valid", "expected"),
    [
        ([4, 1, 3, 2], [1, 1, 1, 1], [1, 0, 1, 0]),
        ([5, 4, 3, 2, 1], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]),  # half of five is two
        ([4, 3, 3, 2], [1, 1, 1, 1], [1, 1, 1, 0]),  # a tie with the last one
        ([9, 1, 3, 2], [0, 1, 1, 1], [0, 0, 1, 0]),  # half of three valid ones
        ([9, 9, 9, -2], [0, 0, 0, 1], [0, 0, 0, 1]),  # one at least
        ([0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]),
    ],
)
def test_top_half_of_a_row(row: list[float], valid: list[int], expected: list[int]) -> None:
    mask = torch.tensor([valid], dtype=torch.bool)
    kept = top_half(torch.tensor(row, dtype=torch.float32).repeat(1, len(row), 1), mask)[0]
    for place, own in enumerate(valid):
        assert kept[place].tolist() == [bool(own and entry) for entry in expected]


def test_filling_pairs_influence_nothing() -> None:
    """Not the others' values and gradients, and not the parameters' gradients."""
    module, valid = relations(), torch.tensor([True] * N + [True, False, True, False, False])

    def found(image: Encoded, text: Encoded) -> list[torch.Tensor]:
        parts = [side.local.clone().requires_grad_() for side in (image, text)]
        image, text = replace(image, local=parts[0]), replace(text, local=parts[1])
        related = module(image, text, valid)
        loss = sum((side[valid] * random(7, D, seed=9)).sum() for side in (related.image, related.text))
        grads = torch.autograd.grad(loss, [*parts, *module.parameters()])
        assert not grads[0][~valid].any()
        assert torch.isfinite(related.image).all()
        return [related.image[valid], related.text[valid], *related.cross, *grads]

    image, text = encoded()
    before = found(image, text)
    assert image.local[~valid].any()
    changed = []
    for side in (image, text):
        local, tokens = side.local.clone(), side.tokens.clone()
        local[~valid], tokens[~valid] = normalize(side.local[0] + 0.1, dim=0), side.tokens[0]
        changed.append(replace(side, local=local, tokens=tokens))
    for one, two in zip(before, found(*changed), strict=True):
        assert torch.equal(one, two)


def test_a_group_with_filling_pairs_is_the_group_without_them() -> None:
    image, text = encoded(N)
    keep = torch.tensor([True, False, True, True, False])
    whole = relations()(image, text, keep)
    small = relations(SETTINGS.model_copy(update={"group": 3}))
    image, text = (
        Encoded(s.embedding[keep], s.local[keep], s.tokens[keep], s.valid[keep] if s.valid is not None else None)
        for s in (image, text)
    )
    alone = small(image, text, torch.ones(3, dtype=torch.bool))
    torch.testing.assert_close(whole.image[keep], alone.image, rtol=0, atol=1e-13)
    torch.testing.assert_close(whole.text[keep], alone.text, rtol=0, atol=1e-13)


def test_a_group_of_filling_pairs_alone_is_finite() -> None:
    module, valid = relations(), torch.arange(B) < N
    related = module(*encoded(), valid)
    related.image.sum().backward()
    assert torch.isfinite(related.image).all()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)


def test_a_group_depends_on_itself_alone() -> None:
    module, valid = relations(), torch.ones(B, dtype=torch.bool)
    image, text = encoded()
    together = module(image, text, valid)
    rows = slice(N, B)
    assert text.valid is not None
    alone = module(
        Encoded(image.embedding[rows], image.local[rows], image.tokens[rows], None),
        Encoded(text.embedding[rows], text.local[rows], text.tokens[rows], text.valid[rows]),
        valid[rows],
    )
    torch.testing.assert_close(together.image[rows], alone.image, rtol=0, atol=1e-14)
    torch.testing.assert_close(together.text[rows], alone.text, rtol=0, atol=1e-14)


def test_learned_relevance_is_trained_through_the_graph_and_the_average_is_not() -> None:
    valid = torch.ones(B, dtype=torch.bool)
    module = relations()
    module(*encoded(), valid).image.mul(random(B, D, seed=9)).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in module.relevance.parameters())
    average = relations(SETTINGS.model_copy(update={"relevance": "average"}))
    assert not list(average.relevance.parameters())


def test_heads_that_do_not_divide_the_width_are_refused_in_one_line() -> None:
    with pytest.raises(ModelError, match=r"loss\.relations\.heads: embed_dim 8 is not divisible by 3 heads"):
        Relations(8, SETTINGS.model_copy(update={"heads": 3}))
