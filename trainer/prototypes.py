"""Dynamic clustering in a run: now and then the prototypes are re-estimated, and dead ones are re-seeded."""

from typing import Any

import torch

from model.frameworks import Framework
from model.memory.bank import PrototypeBank
from model.memory.clustering import is_due, reestimate, reseed
from trainer.partitions import replace_rows, whole_weight


@torch.no_grad()
def tend_prototypes(engine: Any, framework: Framework, step: int) -> None:
    """Do what is due after `step` applied optimiser steps. All ranks call it together."""
    term = framework.prototypes
    if term is None:
        return
    config, bank, queue = term.config, term.bank, framework.queue
    start, seed = config.start_step, framework.seed
    if is_due(step, start, config.reestimate_every) and queue is not None and 2 * queue.filled >= config.count:
        points = queue.points(framework.encoders.embed_dim)
        renewed = reestimate(_whole(engine, bank), points, seed)
        set_prototypes(engine, bank, renewed, torch.ones_like(bank.last_used, dtype=torch.bool), step)
    if is_due(step, start, config.reseed_after):
        dead = bank.dead(step, config.reseed_after)
        set_prototypes(engine, bank, reseed(_whole(engine, bank), bank.usage, dead, seed, step), dead, step)


def _whole(engine: Any, bank: PrototypeBank) -> torch.Tensor:
    prototypes = bank.prototypes
    return whole_weight(engine, prototypes) if isinstance(prototypes, torch.nn.Parameter) else prototypes


@torch.no_grad()
def set_prototypes(
    engine: Any, bank: PrototypeBank, prototypes: torch.Tensor, rows: torch.Tensor, step: int
) -> None:
    """Put (P, D) prototypes in the place of those of (P,) bool `rows`, learned or averaged ones."""
    if isinstance(bank.prototypes, torch.nn.Parameter):
        replace_rows(engine, bank.prototypes, prototypes, rows)
    else:
        bank.prototypes.copy_(torch.where(rows.unsqueeze(1), prototypes, bank.prototypes))
    bank.renew(rows, step)
