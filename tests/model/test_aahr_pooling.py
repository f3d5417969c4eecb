"""Poolings of local tokens against versions written with loops, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.aahr.pooling import GlobalGuidedPooling, top_k_mean

B, N, D, HEADS = 3, 5, 6, 4
VALID = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [0, 1, 0, 1, 1]], dtype=torch.bool)


def top_k_mean_with_loops(tokens: torch.Tensor, valid: torch.Tensor, k: int) -> torch.Tensor:
    rows = []
    for item, mask in zip(tokens, valid, strict=True):
        real = [token for token, is_real in zip(item, mask, strict=True) if is_real]
        channels = []
        for channel in range(tokens.shape[2]):
            largest = sorted((token[channel] for token in real), reverse=True)[:k]
            channels.append(sum(largest) / len(largest))
        rows.append(torch.stack(channels))
    return torch.stack(rows)


def attend_directly(
    pooling: GlobalGuidedPooling, pooled: torch.Tensor, tokens: torch.Tensor, valid: torch.Tensor
) -> torch.Tensor:
    """Section 1.1 as it is written: h heads with D x D maps each, values mapped token by token."""
    width, rows = tokens.shape[2], []
    for item in range(len(tokens)):
        outputs = []
        for head in range(pooling.heads):
            span = slice(head * width, (head + 1) * width)
            w_query, w_key, w_value = (
                pooling.query.weight[span],
                pooling.key.weight[span],
                pooling.value.weight[:, span],
            )
            query = w_query @ pooled[item]
            query = query / query.norm()
            weights, values = [], []
            for token, is_real in zip(tokens[item], valid[item], strict=True):
                if is_real:
                    key = w_key @ token
                    weights.append(torch.exp(query @ key / key.norm()))
                    values.append(w_value @ token)
            total = sum(weights)
            outputs.append(sum(w / total * v for w, v in zip(weights, values, strict=True)))
        rows.append(sum(outputs) / pooling.heads)
    return torch.stack(rows)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    k=st.integers(1, 8),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_top_k_mean_is_that_of_the_loops_whatever_is_valid(lengths: list[int], k: int, seed: int) -> None:
    tokens = random(len(lengths), 6, 3, seed=seed)
    shuffle = torch.rand(len(lengths), 6, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)
    valid = shuffle < torch.tensor(lengths).unsqueeze(1)  # so many places of each row, anywhere in it
    ours, expected = top_k_mean(tokens, valid, k), top_k_mean_with_loops(tokens, valid, k)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-14)
    weight = random(*ours.shape, seed=seed + 1).detach()
    mine, theirs = (torch.autograd.grad((out * weight).sum(), tokens)[0] for out in (ours, expected))
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-14)


@pytest.mark.parametrize("k", [1, 2, 9])
def test_top_k_mean_without_a_mask_takes_every_token_as_valid(k: int) -> None:
    tokens = random(B, N, D)
    everything = torch.ones(B, N, dtype=torch.bool)
    assert torch.equal(top_k_mean(tokens, None, k), top_k_mean(tokens, everything, k))
    torch.testing.assert_close(top_k_mean(tokens, None, k), top_k_mean_with_loops(tokens, everything, k))


def test_top_k_mean_ignores_invalid_tokens_even_when_all_valid_ones_are_negative() -> None:
    tokens = -torch.ones(1, 3, 2)
    tokens[0, 1] = 100
    assert torch.equal(top_k_mean(tokens, torch.tensor([[True, False, True]]), 2), -torch.ones(1, 2))


@pytest.mark.parametrize("masked", [True, False])
def test_pooling_equals_the_direct_form_in_value_and_gradients(masked: bool) -> None:
    torch.manual_seed(1)
    pooling = GlobalGuidedPooling(D, HEADS).double()
    pooled, tokens = random(B, D, seed=2), random(B, N, D, seed=3)
    ours = pooling(pooled, tokens, VALID if masked else None)
    expected = attend_directly(pooling, pooled, tokens, VALID if masked else torch.ones_like(VALID))
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-13)
    weight = random(B, D, seed=4).detach()
    inputs = [pooled, tokens, *pooling.parameters()]
    mine, theirs = (torch.autograd.grad((out * weight).sum(), inputs) for out in (ours, expected))
    for a, b in zip(mine, theirs, strict=True):
        assert b.any()
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


def test_every_head_has_its_own_maps_of_d_by_d() -> None:
    pooling = GlobalGuidedPooling(D, HEADS)
    assert sum(p.numel() for p in pooling.parameters()) == 3 * HEADS * D * D
    heads = pooling.query.weight.unflatten(0, (HEADS, D))
    assert not any(torch.equal(heads[0], heads[other]) for other in range(1, HEADS))
    for maps in pooling.parameters():
        assert 0.8 * D**-0.5 < maps.abs().max() <= D**-0.5  # where each of D x D begins


def test_pooling_does_not_depend_on_the_length_of_the_query_or_of_a_key() -> None:
    pooling = GlobalGuidedPooling(D, HEADS).double()
    pooled, tokens = random(B, D).detach(), random(1, N, D).detach().expand(B, N, D)
    torch.testing.assert_close(pooling(pooled, tokens, VALID), pooling(7 * pooled, tokens, VALID))
    # equal tokens but for their length have equal keys, so the weights are equal
    scaled = tokens[:, :1] * torch.tensor([1.0, 2, 3, 4, 5], dtype=torch.float64).view(1, N, 1)
    mean = pooling.value((tokens[:, 0] * 3).repeat(1, HEADS)) / HEADS
    torch.testing.assert_close(pooling(pooled, scaled, None), mean)
