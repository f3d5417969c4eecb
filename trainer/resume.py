"""Which checkpoint a run goes on from: the newest one that is, to the byte, what was written."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch.distributed as dist

from trainer.checkpoint import DamagedError, check_hashes, read_checkpoint
from trainer.checkpoint_folder import look_for_checkpoints, set_aside
from trainer.distributed import World
from trainer.errors import RunError
from trainer.plan import Plan, make_plan

_AT_ONCE = 4
"""Files that a rank reads at once."""


def settle_resume(plan: Plan, world: World) -> tuple[Plan, list[str]]:
    """The plan with the newest checkpoint whose every byte was compared, and a line for each that was set aside.

    All ranks call it together, once rank 0 has the run's lease; they share out the files. Damaged checkpoints are
    renamed, and kept. Raises `RunError` when none is whole: to begin anew is for the user to say.
    """
    folder = plan.run_dir / "checkpoints"
    found: list[Any] = [None, []]  # the newest whole one's name, and the notes
    damage: str | None = None
    while not plan.finished:
        if world.is_main:
            found = [None, found[1] + ([_set_aside(folder / found[0], damage)] if damage else [])]
            listed = look_for_checkpoints(folder)
            found[1] += [_set_aside(path, reason) for path, reason in listed.damaged]
            found[0] = listed.whole[-1].path.name if listed.whole else None
        dist.broadcast_object_list(found)
        damage = _damage(folder / found[0], world) if found[0] else None
        if damage is None:
            break
    newest, notes = found
    if notes and newest is None:
        raise RunError(f"{folder}: no checkpoint is whole; {notes[-1]}")
    if not plan.finished and newest != (plan.resume and plan.resume.path.name):
        # by its name: a node may still see, as a whole one, what was set aside a moment ago
        plan = make_plan(plan.recipe, plan.processes, folder / newest if newest else None)
    return plan, notes


def _damage(path: Path, world: World) -> str | None:
    """What is wrong with a checkpoint's bytes; every rank reads its share, and all return the same."""
    own: str | None = None
    try:
        checkpoint = read_checkpoint(path)
        names = sorted(checkpoint.files, key=lambda name: -checkpoint.files[name].bytes)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(lambda name: check_hashes(checkpoint, [name]), names[world.rank :: world.size]))
    except DamagedError as error:
        own = str(error)
    everyone: list[str | None] = [None] * world.size
    dist.all_gather_object(everyone, own)
    return next((damage for damage in everyone if damage), None)


def _set_aside(path: Path, reason: str) -> str:
    return f"{reason}; set aside as {set_aside(path).name}"
