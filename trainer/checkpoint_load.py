"""From a checkpoint's files to a model's weights and an engine's optimiser state."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from model.frameworks import Framework
from model.towers.open_clip_weights import fit_positions
from trainer.checkpoint import OPTIMIZER, WEIGHTS, Checkpoint
from trainer.errors import RunError
from trainer.partitions import MOMENTS, set_moments
from trainer.tensor_files import TensorFiles

OF_PAST_BATCHES = ("momentum.", "queue.")
"""What a framework keeps that means nothing on other data."""


def load_weights(
    module: torch.nn.Module, checkpoint: Checkpoint, prefix: str = "", *, fine_tunes: bool = False
) -> list[str]:
    """Copy the weights whose names start with `prefix` into a module that is not yet in an engine.

    To fine-tune a framework, `OF_PAST_BATCHES` is left out, and of the loss terms what has another shape; position
    embeddings of another image size are interpolated.
    Returns the names that have no counterpart, on either side. Raises `RunError` for a file that cannot be
    read, when nothing matches, and when a weight has another shape: the checkpoint is of another model.
    """
    own = module.state_dict()
    theirs = {
        name.removeprefix(prefix): tensor
        for name, tensor in _load(checkpoint.path / WEIGHTS).items()
        if name.startswith(prefix)
    }
    if isinstance(module, Framework):
        theirs = module.own_part(theirs)
    if fine_tunes:
        own, theirs = (
            {name: value for name, value in side.items() if not name.startswith(OF_PAST_BATCHES)}
            for side in (own, theirs)
        )
        for name in [name for name in theirs if name.startswith("terms.") and name in own]:
            if own[name].shape != theirs[name].shape:
                del theirs[name]
        for name in [name for name in theirs if name.endswith(".positional_embedding") and name in own]:
            if own[name].shape[1:] == theirs[name].shape[1:] and len(own[name]) != len(theirs[name]):
                theirs[name] = fit_positions(module.get_submodule(name.rpartition(".")[0]), theirs[name])
    other = [name for name in own.keys() & theirs.keys() if own[name].shape != theirs[name].shape]
    if other:
        name = min(other)
        raise RunError(
            f"{checkpoint.path}: a checkpoint of another model: {name} is {list(theirs[name].shape)} there and "
            f"{list(own[name].shape)} here ({len(other)} such); use the model section of its recipe.yaml"
        )
    if not own.keys() & theirs.keys():
        raise RunError(f"{checkpoint.path}: a checkpoint of another model: no weight has a name that is known here")
    module.load_state_dict(theirs, strict=False)
    return sorted(own.keys() ^ theirs.keys())


def load_optimizer(engine: Any, checkpoint: Checkpoint) -> None:
    """Fill a new engine's optimiser state; every rank reads its own part of it."""
    files = TensorFiles(sorted(checkpoint.path.glob(OPTIMIZER)))
    wanted = [name for name, parameter in engine.module.named_parameters() if parameter.requires_grad]
    if missing := [name for name in wanted if any(f"{name}/{moment}" not in files for moment in MOMENTS)]:
        raise RunError(f"{checkpoint.path}: holds no optimiser state of {min(missing)} ({len(missing)} such)")
    set_moments(engine, files.read, checkpoint.step)


def _load(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path}: cannot be read ({error})") from None
