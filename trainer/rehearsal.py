"""What a run does before its first step, for `--dry-run`."""

import torch

from trainer.assemble import assemble_framework, training_loader, validation_set
from trainer.distributed import World
from trainer.plan import Plan


def rehearse(plan: Plan, world: World) -> list[str]:
    """Build the model, load the weights that it starts from, and open the data; nothing is written.

    Returns a line for each thing to know about the weights. Raises as training would.
    """
    _, notes = assemble_framework(plan)
    training_loader(plan, world, torch.device("cpu"))
    validation_set(plan)
    return [f"note   {note}" for note in notes]
