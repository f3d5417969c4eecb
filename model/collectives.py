"""What ranks exchange inside the model: a few functions that are identities in one process.

Every rank calls them in the same order, and where rows are gathered holds an equal number of them.
docs/scaling.md counts what a step exchanges.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if world_size() > 1 else 0


def _all_gather(rows: torch.Tensor) -> torch.Tensor:
    everyone = torch.empty((rows.shape[0] * world_size(), *rows.shape[1:]), dtype=rows.dtype, device=rows.device)
    dist.all_gather_single(everyone, rows.contiguous())
    return everyone


def gather(rows: torch.Tensor) -> torch.Tensor:
    """`gather_packed` of one tensor."""
    return gather_packed(rows)[0]


def gather_packed(*parts: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Each (b, ...) on every rank -> (b * world_size, ...) in rank order, all in one exchange.

    What arrives has the bits of what was sent, of whatever dtype: float32, float64, int64 and bool travel as words
    of 32 bits. The backward pass sums, in one exchange, the gradients of those parts that require one.
    """
    if world_size() == 1:
        return parts
    gathered: tuple[torch.Tensor, ...] = _GatherPacked.apply(*parts)  # type: ignore[no-untyped-call]
    return gathered


class _GatherPacked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *parts: torch.Tensor) -> tuple[torch.Tensor, ...]:
        words = [_as_words(part) for part in parts]
        widths = [word.shape[1] for word in words]
        everyone = torch.split_with_sizes(_all_gather(torch.cat(words, dim=1)), widths, dim=1)
        gathered = [_from_words(word, part) for word, part in zip(everyone, parts, strict=True)]
        ctx.mark_non_differentiable(
            *(whole for whole, needed in zip(gathered, ctx.needs_input_grad, strict=True) if not needed)
        )
        ctx.shapes = [part.shape for part in parts]
        return tuple(gathered)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        needed = [number for number, needs in enumerate(ctx.needs_input_grad) if needs]
        own = iter(sum_for_owners([grad_outputs[number] for number in needed]))
        return tuple(next(own).view(ctx.shapes[n]) if n in needed else None for n in range(len(grad_outputs)))


def _as_words(part: torch.Tensor) -> torch.Tensor:
    """(b, ...) -> (b, n) int32 of the same bits."""
    flat = part.detach().reshape(len(part), -1)
    if flat.dtype == torch.bool:
        return flat.to(torch.int32)
    assert flat.dtype.itemsize in (4, 8), f"{flat.dtype} does not fill words"
    return flat.contiguous().view(torch.int32)


def _from_words(words: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(G, n) int32 -> (G, ...) with dtype and row shape of `like`."""
    if like.dtype == torch.bool:
        flat = words.bool()
    elif like.dtype.itemsize == 4:
        flat = words.view(like.dtype)
    else:
        flat = words.contiguous().view(like.dtype)
    return flat.view(len(words), *like.shape[1:])


def sum_for_owners(parts: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    """(b * world_size, ...) each -> (b, n): the sum over the ranks of what they hold for this rank's rows.

    In one exchange and without gradient. The inverse of `gather_packed`.
    """
    flat = [part.reshape(len(part), -1) for part in parts]
    if world_size() == 1:
        return flat
    packed = torch.cat(flat, dim=1)
    own = packed.new_empty((len(packed) // world_size(), packed.shape[1]))
    dist.reduce_scatter_single(own, packed)
    columns = torch.split_with_sizes(own, [part.shape[1] for part in flat], dim=1)
    return [some.to(part.dtype) for some, part in zip(columns, parts, strict=True)]


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
