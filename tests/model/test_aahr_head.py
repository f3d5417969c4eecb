"""Projections, aggregation and the assembled head against section 1.1 written out, in float64."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import layer_norm

from model.aahr.head import AahrHead, AdaptiveAggregation, FragmentGraph, image_head, text_head
from model.aahr.projection import GlobalProjection, ImageLocalProjection
from model.config import AahrConfig, ModelConfig
from model.features import Features
from tests.model.test_aahr_pooling import attend_directly, top_k_mean_with_loops

D, HEADS, GROUP = 8, 2, 2
POOLED, WIDTH = 5, 7
CONFIG = ModelConfig(
    embed_dim=D,
    norm_group=GROUP,
    aahr=AahrConfig(fragment_heads=HEADS, pooling_heads=3, dropout=0.0, top_k=2, max_weight=0.8),
)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def linear(layer: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return x @ layer.weight.T + layer.bias


def scramble(module: torch.nn.Module) -> torch.nn.Module:
    """Give norms and biases values that are not the neutral ones that they start with."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def normalised(x: torch.Tensor) -> torch.Tensor:
    return x / (x * x).sum(dim=-1, keepdim=True).sqrt()


def project_image_tokens(projection: ImageLocalProjection, tokens: torch.Tensor) -> torch.Tensor:
    hidden = linear(projection.reduce, tokens)
    rows = []
    for group in hidden.split(projection.norm.group):
        flat = group.reshape(-1, hidden.shape[-1])
        mean = flat.sum(dim=0) / len(flat)
        var = ((flat - mean) ** 2).sum(dim=0) / len(flat)
        rows.append(
            (group - mean) / (var + projection.norm.eps).sqrt() * projection.norm.weight + projection.norm.bias
        )
    activated = torch.cat(rows)
    activated = torch.where(activated > 0, activated, 0.0)
    return linear(projection.fc, tokens) + linear(projection.expand, activated)


def relate_with_loops(layer: FragmentGraph, tokens: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """A transformer encoder layer, normalising after each part, one item and one head at a time."""
    attention, width = layer.self_attn, tokens.shape[-1]
    items = []
    for item, mask in zip(tokens, valid, strict=True):
        q, k, v = (item @ attention.in_proj_weight.T + attention.in_proj_bias).split(width, dim=1)
        size, outputs = width // HEADS, []
        for head in range(HEADS):
            span = slice(head * size, (head + 1) * size)
            scores = (q[:, span] @ k[:, span].T / size**0.5)[:, mask]
            outputs.append((scores.exp() / scores.exp().sum(dim=1, keepdim=True)) @ v[mask][:, span])
        x = layer_norm(
            item + linear(attention.out_proj, torch.cat(outputs, dim=1)),
            (width,),
            layer.norm1.weight,
            layer.norm1.bias,
        )
        forward = linear(layer.linear2, linear(layer.linear1, x).clamp(min=0))
        items.append(layer_norm(x + forward, (width,), layer.norm2.weight, layer.norm2.bias))
    return torch.stack(items)


def aggregate(aggregation: AdaptiveAggregation, local: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
    a, g = normalised(local), normalised(pooled)
    z = 1 / (1 + torch.exp(-linear(aggregation.gate, torch.cat([a, g], dim=1))))
    return normalised(z * a + (1 - z) * g)


def embed_with_loops(head: AahrHead, features: Features) -> torch.Tensor:
    pooled = linear(head.global_projection.fc, features.pooled) + linear(
        head.global_projection.mlp, features.pooled
    )
    local = head.local_projection
    tokens = (
        project_image_tokens(local, features.tokens)
        if isinstance(local, ImageLocalProjection)
        else linear(local, features.tokens)
    )
    valid = torch.ones(tokens.shape[:2], dtype=torch.bool) if features.valid is None else features.valid
    e_max = top_k_mean_with_loops(tokens, valid, 2)
    e_att = attend_directly(head.pooling, pooled, relate_with_loops(head.fragment_graph, tokens, valid), valid)
    return aggregate(head.aggregation, 0.8 * e_max + 0.2 * e_att, pooled)


def double_result(head: AahrHead, features: Features) -> torch.Tensor:
    """The head's embedding before it is rounded to float32."""
    kept = []
    handle = head.aggregation.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    head(features)
    handle.remove()
    return kept[0]


def image_case() -> tuple[AahrHead, Features]:
    head = scramble(image_head(CONFIG, POOLED, WIDTH).double().train())
    return head, Features(random(4, POOLED, seed=1), random(4, 6, WIDTH, seed=2), None)


def text_case() -> tuple[AahrHead, Features]:
    head = scramble(text_head(CONFIG, POOLED, WIDTH).double().train())
    valid = torch.arange(6) < torch.tensor([[6], [1], [3]])
    return head, Features(random(3, POOLED, seed=1), random(3, 6, WIDTH, seed=2), valid)


def test_global_projection_is_two_linear_maps_added() -> None:
    projection, x = GlobalProjection(POOLED, D).double(), random(3, POOLED)
    torch.testing.assert_close(projection(x), linear(projection.fc, x) + linear(projection.mlp, x))


def test_image_projection_is_the_residual_mlp_with_norms_over_groups() -> None:
    projection = scramble(ImageLocalProjection(WIDTH, D, GROUP).double())
    x = random(6, 3, WIDTH)
    torch.testing.assert_close(projection(x), project_image_tokens(projection, x), rtol=0, atol=1e-13)
    assert projection.reduce.out_features == D // 2


def test_aggregation_gates_between_the_normalised_local_and_global() -> None:
    aggregation = scramble(AdaptiveAggregation(D).double())
    local, pooled = random(4, D, seed=1), random(4, D, seed=2)
    ours = aggregation(3 * local, 5 * pooled)
    torch.testing.assert_close(ours, aggregate(aggregation, local, pooled), rtol=0, atol=1e-14)
    assert aggregation.gate.weight.shape == (D, 2 * D)  # a gate of its own for every channel


def test_the_fragment_graphs_feed_forward_is_as_wide_as_the_embedding() -> None:
    assert FragmentGraph(D, HEADS, 0.0).linear1.out_features == D


@pytest.mark.parametrize("case", [image_case, text_case])
def test_head_equals_the_written_out_section_in_value_and_gradients(case) -> None:
    head, features = case()
    ours, expected = double_result(head, features), embed_with_loops(head, features)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-13)
    weight = random(*ours.shape, seed=9).detach()
    inputs = {"pooled": features.pooled, "tokens": features.tokens} | dict(head.named_parameters())
    mine, theirs = (torch.autograd.grad((out * weight).sum(), list(inputs.values())) for out in (ours, expected))
    for name, a, b in zip(inputs, mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("case", [image_case, text_case])
def test_embeddings_are_float32_of_length_one(case) -> None:
    head, features = case()
    embedding = head(features).embedding
    assert embedding.dtype == torch.float32
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(len(embedding)))


@pytest.mark.parametrize("training", [True, False])
def test_padded_tokens_change_nothing_and_get_no_gradient(training: bool) -> None:
    head, features = text_case()
    head.train(training)
    assert features.valid is not None
    noise = torch.where(features.valid.unsqueeze(-1), 0.0, 100 * random(3, 6, WIDTH, seed=7).detach())
    torch.testing.assert_close(
        head(replace(features, tokens=features.tokens + noise)).embedding,
        head(features).embedding,
        rtol=0,
        atol=1e-7,
    )
    (grad,) = torch.autograd.grad(
        head(features).embedding.square().mul(random(3, D, seed=8).detach()).sum(), features.tokens
    )
    assert not grad[~features.valid].any()
    assert grad[features.valid].any(dim=1).all()


def test_dropout_acts_in_training_only() -> None:
    config = CONFIG.model_copy(update={"aahr": CONFIG.aahr.model_copy(update={"dropout": 0.5})})
    head, features = text_head(config, POOLED, WIDTH).double(), text_case()[1]
    assert not torch.equal(head.train()(features).embedding, head(features).embedding)
    assert torch.equal(head.eval()(features).embedding, head(features).embedding)


@pytest.mark.parametrize("setting", [{"top_k": 1}, {"max_weight": 0.1}])
def test_settings_of_the_recipe_reach_the_head(setting: dict[str, float]) -> None:
    changed = CONFIG.model_copy(update={"aahr": CONFIG.aahr.model_copy(update=setting)})
    head, features = text_case()
    other = text_head(changed, POOLED, WIDTH).double()
    other.load_state_dict(head.state_dict())
    assert not torch.allclose(head(features).embedding, other(features).embedding)


@pytest.mark.parametrize("case", [image_case, text_case])
def test_under_bfloat16_autocast_embeddings_still_have_length_one(case) -> None:
    head, features = case()
    features = Features(features.pooled.float(), features.tokens.float(), features.valid)
    with torch.autocast("cpu", torch.bfloat16):
        embedding = head.float()(features).embedding
    assert embedding.dtype == torch.float32
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(len(embedding)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", [image_case, text_case])
def test_the_local_path_comes_with_the_embedding(case) -> None:
    head, features = case()
    encoded = head(features)
    pooled = linear(head.global_projection.fc, features.pooled) + linear(
        head.global_projection.mlp, features.pooled
    )
    assert encoded.valid is features.valid
    assert encoded.local.dtype == torch.float32
    torch.testing.assert_close(encoded.tokens, head.local_projection(features.tokens))
    mixed = head.aggregation.float()(encoded.local, pooled.float())
    torch.testing.assert_close(mixed, encoded.embedding, rtol=0, atol=1e-6)
    torch.testing.assert_close(encoded.local.norm(dim=1), torch.ones(len(encoded.local)))
