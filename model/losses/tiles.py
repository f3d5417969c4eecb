"""Sums over all pairs of anchors and keys that never hold the (b, K) matrix of their similarities.

Similarities are made tile by tile and forgotten. Whatever a sum's gradient to the anchors needs of the keys is one
weighted mean of key vectors an anchor, which is summed up beside the value, as attention does with its values
(online softmax: Milakov and Gimelshein, arXiv 1805.02867; in tiles: Dao et al., FlashAttention, NeurIPS 2022). So
keys without gradient, as those of a queue are, need no second pass; for the others the backward pass makes the
tiles anew. Values and gradients are exact.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus


class Keys(NamedTuple):
    """What anchors are compared with: a gathered batch, or a queue."""

    vectors: torch.Tensor
    """(K, D)"""
    ids: torch.Tensor
    """(K,) int64; no key is a negative of an anchor of its id"""
    valid: torch.Tensor
    """(K,) bool, False where a row holds nothing: it counts for no anchor"""


class KeyStream(Protocol):
    """Keys without gradient that come block by block, such as those of a queue that ranks share out."""

    def blocks(self) -> Iterator[Keys]:
        """All keys once; every rank reads to the end, together with the others."""


class Activation(NamedTuple):
    """A function of a pair's logit, 0 and flat at minus infinity, where excluded pairs are put."""

    value: Callable[[torch.Tensor], torch.Tensor]
    """leaves its argument as it is"""
    slope: Callable[[torch.Tensor], torch.Tensor]
    """may write over its argument"""


# torch's own threshold of 20 is off by 2e-9, which float64 would see
SOFTPLUS = Activation(lambda logits: softplus(logits, threshold=40), torch.Tensor.sigmoid_)
HINGE = Activation(torch.relu, lambda logits: logits.clamp_(min=0).sign_())


def tile_shape(device: torch.device) -> tuple[int, int]:
    """Anchors and keys of a tile: 8 MiB in float32, near a CPU; 128 MiB on a GPU, worth a kernel's launch."""
    return (1024, 2048) if device.type == "cpu" else (8192, 4096)


def full_precision(vectors: torch.Tensor) -> torch.Tensor:
    """Half precision as float32, the rest as it is."""
    return vectors if vectors.dtype == torch.float64 else vectors.float()


def spans(length: int, size: int) -> Iterator[slice]:
    for begin in range(0, length, size):
        yield slice(begin, min(begin + size, length))


def similarities(anchors: torch.Tensor, ids: torch.Tensor, vectors: torch.Tensor, keys: Keys) -> torch.Tensor:
    """One tile (r, c) of dot products, minus infinity where the key is no negative of the anchor."""
    excluded = (ids.unsqueeze(1) == keys.ids).logical_or_(~keys.valid)
    return (anchors @ vectors.T).masked_fill_(excluded, -torch.inf)


def tiles_of_row(
    anchors: torch.Tensor, ids: torch.Tensor, keys: Keys, size: int
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """Some anchors against all keys: where the tile's keys lie, their vectors, the tile."""
    for columns in spans(len(keys.vectors), size):
        some = Keys(keys.vectors[columns], keys.ids[columns], keys.valid[columns])
        vectors = some.vectors.to(anchors.dtype)
        yield columns, vectors, similarities(anchors, ids, vectors, some)


def logsumexp_over_keys(queries: torch.Tensor, ids: torch.Tensor, keys: Keys | KeyStream) -> torch.Tensor:
    """`log sum_j exp(q_i . k_j)` over the keys of other ids: (b, D), (b,) -> (b,); minus infinity without any.

    Gradients to `queries` and `keys.vectors`. Queries come multiplied by the temperature's inverse.
    """
    if not isinstance(keys, Keys):
        streamed: torch.Tensor = _StreamedLogSumExp.apply(_watched(queries), ids, keys)  # type: ignore[no-untyped-call]
        return streamed
    result: torch.Tensor = _LogSumExp.apply(_watched(queries), ids, *keys)  # type: ignore[no-untyped-call]
    return result


def sum_over_keys(
    queries: torch.Tensor, shift: torch.Tensor, ids: torch.Tensor, keys: Keys, activation: Activation
) -> torch.Tensor:
    """`sum_j f(q_i . k_j + shift_i)` over the keys of other ids: (b, D), (b,), (b,) -> (b,).

    Gradients to `queries`, `shift` and `keys.vectors`.
    """
    result: torch.Tensor = _Sum.apply(_watched(queries), _watched(shift), ids, *keys, activation)  # type: ignore[no-untyped-call]
    return result


def _watched(rows: torch.Tensor) -> torch.Tensor:
    """Also under `no_grad` a function is told that its inputs require gradients, and would sum them up."""
    return rows if torch.is_grad_enabled() else rows.detach()


class _Softmax:
    """What the tiles of (b, D) queries add up to: the sum of exponentials, and the softmax's mean of the keys."""

    def __init__(self, queries: torch.Tensor, with_mean: bool) -> None:
        self.highest = queries.new_full((len(queries),), -torch.inf)
        self.total = torch.zeros_like(self.highest)
        self.mean = torch.zeros_like(queries) if with_mean else None

    def add(self, queries: torch.Tensor, ids: torch.Tensor, keys: Keys) -> None:
        rows_size, columns_size = tile_shape(queries.device)
        for rows in spans(len(queries), rows_size):
            for _, some, logits in tiles_of_row(queries[rows], ids[rows], keys, columns_size):
                before = self.highest[rows]
                highest = torch.maximum(before, logits.amax(dim=1))
                finite = highest.masked_fill(highest == -torch.inf, 0)
                weights = logits.sub_(finite.unsqueeze(1)).exp_()
                shrink = (before - finite).exp_()
                self.total[rows] = self.total[rows] * shrink + weights.sum(dim=1)
                if self.mean is not None:
                    self.mean[rows].mul_(shrink.unsqueeze(1)).addmm_(weights, some)
                self.highest[rows] = highest

    def close(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(b,) the logarithm of the sum, and (b, D) the mean, which is its gradient to the queries."""
        if self.mean is not None:
            # the largest logit alone adds 1, so less means that there was no key
            self.mean.div_(self.total.clamp(min=1).unsqueeze(1))
        return self.highest + self.total.log(), self.mean


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: torch.Tensor,
        ids: torch.Tensor,
        vectors: torch.Tensor,
        key_ids: torch.Tensor,
        valid: torch.Tensor,
    ) -> torch.Tensor:
        keys = Keys(vectors, key_ids, valid)
        softmax = _Softmax(queries, with_mean=ctx.needs_input_grad[0])
        softmax.add(queries, ids, keys)
        result, mean = softmax.close()
        ctx.save_for_backward(queries, ids, *keys, result, mean)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        queries, ids, *key_parts, result, mean = ctx.saved_tensors
        to_queries = to_keys = None
        if ctx.needs_input_grad[0]:
            to_queries = mean * grad.unsqueeze(1)
        if ctx.needs_input_grad[2]:
            shift = -result.masked_fill(result == -torch.inf, 0)
            to_keys = _gradient_to_keys(grad, queries, shift, ids, Keys(*key_parts), torch.Tensor.exp_)
        return to_queries, None, to_keys, None, None


class _StreamedLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: torch.Tensor, ids: torch.Tensor, stream: KeyStream) -> torch.Tensor:
        softmax = _Softmax(queries, with_mean=ctx.needs_input_grad[0])
        for keys in stream.blocks():
            softmax.add(queries, ids, keys)
        result, mean = softmax.close()
        ctx.save_for_backward(mean)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (mean,) = ctx.saved_tensors
        return mean * grad.unsqueeze(1), None, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: torch.Tensor,
        shift: torch.Tensor,
        ids: torch.Tensor,
        vectors: torch.Tensor,
        key_ids: torch.Tensor,
        valid: torch.Tensor,
        activation: Activation,
    ) -> torch.Tensor:
        keys = Keys(vectors, key_ids, valid)
        rows_size, columns_size = tile_shape(queries.device)
        result = torch.zeros_like(shift)
        wanted = any(ctx.needs_input_grad[:2])
        slopes = torch.zeros_like(shift) if wanted else None
        sloped_keys = torch.zeros_like(queries) if wanted else None
        for rows in spans(len(queries), rows_size):
            for _, some, logits in tiles_of_row(queries[rows], ids[rows], keys, columns_size):
                logits.add_(shift[rows].unsqueeze(1))
                result[rows] += activation.value(logits).sum(dim=1)
                if slopes is not None and sloped_keys is not None:
                    weights = activation.slope(logits)
                    slopes[rows] += weights.sum(dim=1)
                    sloped_keys[rows].addmm_(weights, some)
        ctx.save_for_backward(queries, shift, ids, *keys, slopes, sloped_keys)
        ctx.slope = activation.slope
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        queries, shift, ids, *key_parts, slopes, sloped_keys = ctx.saved_tensors
        to_queries = to_shift = to_keys = None
        if ctx.needs_input_grad[0]:
            to_queries = sloped_keys * grad.unsqueeze(1)
        if ctx.needs_input_grad[1]:
            to_shift = slopes * grad
        if ctx.needs_input_grad[3]:
            to_keys = _gradient_to_keys(grad, queries, shift, ids, Keys(*key_parts), ctx.slope)
        return to_queries, to_shift, None, to_keys, None, None, None


def _gradient_to_keys(
    grad: torch.Tensor,
    queries: torch.Tensor,
    shift: torch.Tensor,
    ids: torch.Tensor,
    keys: Keys,
    slope: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """`sum_i grad_i slope(q_i . k_j + shift_i) q_i`, the tiles made anew: (K, D)."""
    rows_size, columns_size = tile_shape(queries.device)
    result = torch.zeros_like(keys.vectors, dtype=queries.dtype)
    for rows in spans(len(queries), rows_size):
        weighted = queries[rows] * grad[rows].unsqueeze(1)
        for columns, _, logits in tiles_of_row(queries[rows], ids[rows], keys, columns_size):
            weights = slope(logits.add_(shift[rows].unsqueeze(1)))
            result[columns].addmm_(weights.T, weighted)
    return result
