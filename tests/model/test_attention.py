"""Attention whose weights take no gradient."""

import pytest
import torch
from torch import nn

from model.attention import order_inputs


class Counted(torch.utils._python_dispatch.TorchDispatchMode):
    """Which operators run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("causal", [False, True])
def test_the_projection_is_one_product_and_values_stay(causal: bool) -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(16, 4, batch_first=True).requires_grad_(False)
    mask = torch.full((5, 5), -torch.inf).triu(1) if causal else None
    x = torch.randn(3, 5, 16)

    def attend() -> tuple[torch.Tensor, list[str]]:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), Counted() as counted:
            attended: torch.Tensor = attention(x, x, x, attn_mask=mask, need_weights=False)[0]
        return attended, counted.names

    before, slow = attend()
    order_inputs(attention)
    after, fast = attend()
    assert "bmm.default" in slow, "torch mends it itself now: model.attention can go"
    assert "bmm.default" not in fast
    torch.testing.assert_close(after, before, rtol=0, atol=1e-2)
    y = torch.randn(3, 5, 16)
    assert torch.equal(attention(x, y, y)[0], nn.MultiheadAttention.forward(attention, x, y, y)[0])
