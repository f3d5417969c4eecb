"""Gradients of losses over a large batch, while the encoders hold a small one at a time.

Gradient caching (Gao et al., "Scaling deep contrastive learning batch size under memory limited setup", RepL4NLP
2021, arXiv 2101.06983): the encoders run without gradient, micro-batch by micro-batch; the losses see the whole and
give the gradient by what the encoders made; the encoders run again, each micro-batch with its own.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from model.encodings import as_leaves, tensors
from model.frameworks import Framework
from model.group_norm import running_statistics

Rows = Sequence[torch.Tensor | None]
Losses = dict[str, torch.Tensor]


def cached_gradients(
    engine: Any, framework: Framework, inputs: Rows, step: int, micro_batch_size: int, seed: Callable[[int], None]
) -> Losses:
    """The losses of this rank's pairs, as `framework.step` gives them; their gradients are left with the engine.

    Where one micro-batch is all of them, this is the plain pass. Of the first the graph is kept (ours), so that
    every backward pass reaches the encoders' weights and the first all others: DeepSpeed's stage 2 fails at one
    that reaches none, and stage 3 overwrites the last step's gradients in the first and adds in the others. It also
    spares an encoding.

    Args:
        engine: of DeepSpeed, around the framework, with one accumulation step; at any ZeRO stage.
        framework: whose `step` takes `inputs` and `step`.
        inputs: of b pairs.
        step: optimiser steps applied before.
        micro_batch_size: pairs that the encoders hold at once; b, or less that divides it.
        seed: sets the seeds of dropout for a micro-batch by its number.
    """
    first, *others = _split(inputs[:-2], micro_batch_size)
    collects = bool(others) and engine.zero_optimization_partition_gradients()
    engine.set_gradient_accumulation_boundary(not others)
    with running_statistics(framework.encoders, advance=True):
        encoded = []
        with torch.no_grad():
            for number, pairs in enumerate(others, start=1):
                seed(number)
                encodings, keys = engine(*pairs, part="encode")
                encoded.append((as_leaves(encodings), keys))
        seed(0)
        losses: Losses = engine(*first, *inputs[-2:], step, encoded)
        engine.backward(losses["loss"])
    gradients = [[one.grad for one in tensors(encodings)] for encodings, _ in encoded]
    del encoded
    with running_statistics(framework.encoders, advance=False):
        for number, (pairs, known) in enumerate(zip(others, gradients, strict=True), start=1):
            engine.set_gradient_accumulation_boundary(number == len(others) and not collects)
            seed(number)
            engine.backward(engine(*pairs, known, part="surrogate"))
    if collects:
        # at a boundary stages 2 and 3 would offload the gradients of that backward pass's weights alone
        engine.optimizer.finalize_gradient_accumulation_boundary()
        engine.set_gradient_accumulation_boundary(True)
    return {name: value.detach() for name, value in losses.items()}


def _split(rows: Rows, size: int) -> list[Rows]:
    """Tensors of b rows -> b / size times the same of `size` rows; what is None stays so."""
    count = max(len(one) for one in rows if one is not None) // size
    parts = [[None] * count if one is None else one.chunk(count) for one in rows]
    return [list(part) for part in zip(*parts, strict=True)]
