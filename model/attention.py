"""What keeps torch's attention fast where its weights take no gradient."""

import torch
from torch import nn


def order_inputs(module: nn.Module) -> None:
    """Have every attention inside of the module, and of copies of it, given its inputs in the order that suits it.

    Under autocast, torch takes the projection of queries, keys and values by a weight without gradient for one
    product a token, each with a copy of the weight: the forward pass of a frozen tower or of momentum encoders
    would take five times as long (docs/decisions.md). Values do not change.
    """
    for part in module.modules():
        if isinstance(part, nn.MultiheadAttention) and part.batch_first and part.in_proj_weight is not None:
            part.register_forward_pre_hook(_tokens_first)


def _tokens_first(attention: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    assert isinstance(attention, nn.MultiheadAttention)
    first = inputs[0]
    alike = all(other is first for other in inputs)
    if attention.in_proj_weight.requires_grad or not alike or first.is_meta:
        return inputs
    if not torch.is_autocast_enabled(first.device.type):
        return inputs
    return (first.transpose(0, 1).contiguous().transpose(0, 1),) * len(inputs)
