"""What ranks exchange inside the model: three functions that are identities in one process.

Every rank holds an equal number of rows, and every rank calls them in the same order.
"""

from typing import Any

import torch
import torch.distributed as dist


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if world_size() > 1 else 0


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, rows: torch.Tensor) -> torch.Tensor:
        return _all_gather(rows)

    @staticmethod
    def backward(_ctx: Any, *grad_outputs: torch.Tensor) -> torch.Tensor:
        (grad,) = grad_outputs
        own = torch.empty_like(grad[: grad.shape[0] // world_size()])
        dist.reduce_scatter_single(own, grad.contiguous())
        return own


def _all_gather(rows: torch.Tensor) -> torch.Tensor:
    everyone = torch.empty((rows.shape[0] * world_size(), *rows.shape[1:]), dtype=rows.dtype, device=rows.device)
    dist.all_gather_single(everyone, rows.contiguous())
    return everyone


def gather(rows: torch.Tensor) -> torch.Tensor:
    """(b, ...) on every rank -> (b * world_size, ...) in rank order, with the full gradient.

    The backward pass sums the gradients that all ranks hold of this rank's rows.
    """
    if world_size() == 1:
        return rows
    if rows.requires_grad:
        gathered: torch.Tensor = _Gather.apply(rows)  # type: ignore[no-untyped-call]
        return gathered
    return _all_gather(rows)


def average(values: torch.Tensor) -> torch.Tensor:
    """The mean of a tensor over the ranks, without gradient."""
    values = values.detach()
    if world_size() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / world_size()


def from_first(values: torch.Tensor) -> torch.Tensor:
    """Rank 0's tensor on every rank; the others pass one of the same shape and dtype."""
    if world_size() == 1:
        return values
    values = values.detach().clone().contiguous()
    dist.broadcast(values, src=0)
    return values
