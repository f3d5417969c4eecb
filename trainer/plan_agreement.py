"""Whether all ranks of a run are about to do the same."""

from typing import Any

import torch.distributed as dist

from trainer.continuity import identity
from trainer.distributed import World
from trainer.errors import RunError
from trainer.plan import Plan
from trainer.preemption import StopRequest


def agree_on_plan(plan: Plan, world: World, stop: StopRequest) -> bool:
    """Whether any rank was told to stop already. Raises `RunError` on every rank unless all have the same plan."""
    data = (identity(plan.train), plan.val and plan.val.fingerprint)
    own = (plan.resume and plan.resume.step, plan.total_steps, plan.recipe.model_dump(), data)
    everyone: list[Any] = [None] * world.size
    dist.all_gather_object(everyone, (own, stop.signal is not None))
    for rank, (other, _) in enumerate(everyone):
        if other != everyone[0][0]:
            raise RunError(
                f"process {rank} sees another run than process 0; run.dir, the recipe and the shards must lie on a "
                "disk that all nodes share"
            )
    return any(stopped for _, stopped in everyone)
