"""Tensors out of, and into, the parts that DeepSpeed keeps: one view on ZeRO stages 0 to 3.

Under stages 1 and 2 a rank holds a span of every group's flattened optimiser state; under stage 3 a span of
every parameter. DeepSpeed's own accessors are linked only after the first step (stages 1, 2) or refuse a
parameter smaller than the world (stage 3); these work at any time. What is called `whole` must be called by all
ranks together; what is called `own` is a rank's own, without a word to the others.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist

from model.frameworks import Framework

MOMENTS = ("exp_avg", "exp_avg_sq")


def whole_weight(engine: Any, parameter: torch.nn.Parameter) -> torch.Tensor:
    """The full float32 weight."""
    if engine.zero_optimization_stage() < 3:
        return parameter.detach()
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameter):
        return parameter.detach().clone()


def whole_shapes(engine: Any) -> dict[str, tuple[int, ...]]:
    """The shape of every whole parameter, by name."""
    return {
        name: tuple(getattr(parameter, "ds_shape", parameter.shape))
        for name, parameter in engine.module.named_parameters()
    }


def own_weights(engine: Any) -> dict[str, torch.Tensor]:
    """This rank's share of the weights and buffers, as they are kept, for a checkpoint.

    Where a rank has them whole, rank 0 gives them all and the others none; under stage 3 every rank its span of
    each weight, (n,) under `NAME@START`, and rank 0 the buffers.
    """
    rank, module = dist.get_rank(), engine.module
    divided = engine.zero_optimization_stage() == 3
    own: dict[str, torch.Tensor] = {}
    for name, parameter in module.named_parameters():
        if not divided and rank == 0:
            own[name] = parameter.detach()
        elif divided:
            start, count = _stage3_span(parameter)
            if count and dist.get_world_size() > 1:
                own[f"{name}@{start}"] = parameter.ds_tensor.view(-1)[:count]
            elif count:
                own[name] = parameter.ds_tensor.view(-1)[:count].view(parameter.ds_shape)
    if isinstance(module, Framework):
        buffers = module.whole_buffers()
    else:
        persistent = module.state_dict().keys()
        buffers = {name: buffer for name, buffer in module.named_buffers() if name in persistent}
    return own | buffers if rank == 0 else own


def own_moments(engine: Any) -> dict[str, torch.Tensor]:
    """This rank's share of AdamW's moments, each a span (n,) under `NAME/MOMENT@START`; zero before the first step.

    Under stage 0, where all ranks have all, the parameters' elements are divided evenly.
    """
    optimizer, stage = _inner_optimizer(engine), engine.zero_optimization_stage()
    trained = [(name, p) for name, p in engine.module.named_parameters() if p.requires_grad]
    rank, world = dist.get_rank(), dist.get_world_size()
    total = sum(parameter.numel() for _, parameter in trained)
    first, last = total * rank // world, total * (rank + 1) // world
    own: dict[str, torch.Tensor] = {}
    passed = 0
    for name, parameter in trained:
        for flat, inner, outer in _spans(engine, parameter):
            start, stop = outer.start, outer.stop
            if stage == 0:
                start, stop = max(start, first - passed), min(stop, last - passed)
            shift = inner.start - outer.start
            state = optimizer.state.get(flat)
            for moment in MOMENTS if start < stop else ():
                source = state[moment].flatten()[start + shift : stop + shift] if state else None
                nothing = torch.zeros(1, device=flat.device).expand(stop - start)
                own[f"{name}/{moment}@{start}"] = nothing if source is None else source
        passed += parameter.numel()
    return own


def set_moments(engine: Any, read: Callable[[str, int, int], torch.Tensor], step: int) -> None:
    """Fill the optimiser's state: `read("NAME/MOMENT", start, stop)` gives a span of a flattened moment.

    `step` is the number of applied optimiser steps, on which AdamW's bias correction depends. Call right
    after the engine was made.
    """
    optimizer = _inner_optimizer(engine)
    for flat in _optimized_tensors(engine):
        optimizer.state[flat] = {"step": torch.tensor(float(step), device=flat.device)} | {
            moment: torch.zeros_like(flat) for moment in MOMENTS
        }
    for name, parameter in engine.module.named_parameters():
        for flat, inner, outer in _spans(engine, parameter):
            for moment in MOMENTS:
                source = read(f"{name}/{moment}", outer.start, outer.stop)
                optimizer.state[flat][moment].view(-1)[inner] = source.to(flat.device)


@torch.no_grad()
def replace_rows(engine: Any, parameter: torch.nn.Parameter, weight: torch.Tensor, rows: torch.Tensor) -> None:
    """Set the rows of a weight that (N,) bool `rows` names to those of `weight`, and forget their moments.

    `weight` is whole, (N, ...), float32, the same on every rank. The optimiser's own copy is set, too, or
    its next step would undo it.
    """
    optimizer, stage = _inner_optimizer(engine), engine.zero_optimization_stage()
    whole_rows = rows.view(-1, *[1] * (weight.ndim - 1)).expand_as(weight).flatten()
    for flat, inner, outer in _spans(engine, parameter):
        chosen = whole_rows[outer].to(flat.device)
        own = flat.detach().view(-1)[inner]
        own.copy_(torch.where(chosen, weight.flatten()[outer].to(own), own))
        state = optimizer.state.get(flat, {})
        for moment in MOMENTS:
            if moment in state:
                state[moment].view(-1)[inner].masked_fill_(chosen, 0)
        if stage == 3:
            part = parameter.ds_tensor  # type: ignore[attr-defined]
            part.view(-1)[: len(own)].copy_(own)
    if stage in (1, 2):
        parameter.copy_(torch.where(whole_rows.view_as(weight), weight.to(parameter), parameter))


def _inner_optimizer(engine: Any) -> torch.optim.Optimizer:
    stage = engine.zero_optimization_stage()
    optimizer: torch.optim.Optimizer = engine.optimizer if stage == 0 else engine.optimizer.optimizer
    return optimizer


def _optimized_tensors(engine: Any) -> list[torch.Tensor]:
    """The tensors that AdamW itself sees on this rank."""
    stage, zero = engine.zero_optimization_stage(), engine.optimizer
    if stage == 0:
        return [parameter for group in zero.param_groups for parameter in group["params"]]
    tensors: list[torch.Tensor] = (
        zero.single_partition_of_fp32_groups if stage < 3 else zero.fp32_partitioned_groups_flat
    )
    return tensors


def _spans(engine: Any, parameter: torch.nn.Parameter) -> Iterator[tuple[torch.Tensor, slice, slice]]:
    """This rank's part of a parameter: the optimiser's tensor, the span in it, the span in the parameter."""
    if not parameter.requires_grad:
        return
    stage, zero = engine.zero_optimization_stage(), engine.optimizer
    if stage == 0:
        yield parameter, slice(0, parameter.numel()), slice(0, parameter.numel())
    elif stage < 3:
        mapping: Any = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is not None:
            inner, outer = mapping.hp_fragment_address, mapping.lp_fragment_address
            yield (
                zero.single_partition_of_fp32_groups[mapping.param_group_index],
                slice(inner.start, inner.start + inner.numel),
                slice(outer.start, outer.start + outer.numel),
            )
    else:
        group, offset, _ = zero.grad_position[zero.get_param_id(parameter)]
        start, count = _stage3_span(parameter)
        yield zero.fp32_partitioned_groups_flat[group], slice(offset, offset + count), slice(start, start + count)


def _stage3_span(parameter: Any) -> tuple[int, int]:
    """Start and length of this rank's span of a flattened parameter; the last ranks' is padded, or empty."""
    padded: int = parameter.ds_tensor.ds_numel
    start = dist.get_rank() * padded
    return start, max(0, min(padded, parameter.ds_numel - start))
