"""Whole tensors out of, and into, the parts that DeepSpeed keeps: one view on ZeRO stages 0 to 3.

Under stages 1 and 2 a rank holds a span of every group's flattened optimiser state; under stage 3 a span of
every parameter. DeepSpeed's own accessors are linked only after the first step (stages 1, 2) or refuse a
parameter smaller than the world (stage 3); these work at any time. All ranks must call them together.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

MOMENTS = ("exp_avg", "exp_avg_sq")


def whole_weight(engine: Any, parameter: torch.nn.Parameter) -> torch.Tensor:
    """The full float32 weight."""
    if engine.zero_optimization_stage() < 3:
        return parameter.detach()
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameter):
        return parameter.detach().clone()


def whole_moment(engine: Any, parameter: torch.nn.Parameter, moment: str) -> torch.Tensor:
    """The full float32 `exp_avg` or `exp_avg_sq`, zero before the first step."""
    shape = getattr(parameter, "ds_shape", parameter.shape)
    whole = torch.zeros(shape.numel(), device=parameter.device)
    for flat, inner, outer in _spans(engine, parameter):
        state = _inner_optimizer(engine).state.get(flat)
        if state:
            whole[outer] = state[moment].flatten()[inner].to(whole)
    if engine.zero_optimization_stage() > 0:
        dist.all_reduce(whole)
    return whole.view(shape)


def set_moments(engine: Any, moments: dict[str, dict[str, torch.Tensor]], step: int) -> None:
    """Fill the optimiser's state from whole tensors: `moments[parameter name][moment]`.

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
                source = moments[name][moment].flatten()[outer]
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
        group, offset, padded = zero.grad_position[zero.get_param_id(parameter)]
        start = dist.get_rank() * padded
        count = max(0, min(padded, parameter.ds_numel - start))  # type: ignore[attr-defined]
        yield zero.fp32_partitioned_groups_flat[group], slice(offset, offset + count), slice(start, start + count)
