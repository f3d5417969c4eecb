"""Dynamic clustering in a run: now and then the prototypes are re-estimated, and dead ones are re-seeded."""

from typing import Any

import torch

from model.frameworks import Framework
from model.memory.clustering import is_due, reestimate, reseed
from trainer.partitions import replace_rows, whole_weight


@torch.no_grad()
def tend_prototypes(engine: Any, framework: Framework, step: int) -> None:
    """Do what is due after `step` applied optimiser steps. All ranks call it together."""
    term = framework.prototypes
    if term is None:
        return
    config, bank = term.config, term.bank
    start, seed = config.start_step, framework.seed
    if is_due(step, start, config.reestimate_every) and framework.queue is not None:
        points = framework.queue.embeddings()[:, : framework.encoders.embed_dim]  # the first kind
        if len(points) >= config.count:
            renewed = reestimate(whole_weight(engine, bank.prototypes), points, seed)
            everything = torch.ones(config.count, dtype=torch.bool, device=points.device)
            replace_rows(engine, bank.prototypes, renewed, everything)
            bank.renew(everything, step)
    if is_due(step, start, config.reseed_after):
        dead = bank.dead(step, config.reseed_after)
        renewed = reseed(whole_weight(engine, bank.prototypes), bank.usage, dead, seed, step)
        replace_rows(engine, bank.prototypes, renewed, dead)
        bank.renew(dead, step)
