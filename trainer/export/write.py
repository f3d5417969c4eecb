"""Export: from a run, a checkpoint or an exported model to a folder in one of the formats."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from shards.atomic import building
from trainer.checkpoint_folder import find_checkpoint
from trainer.errors import RunError
from trainer.export.model_folder import Trained, is_model_folder, read_model_folder, write_model_folder
from trainer.export.onnx_files import write_onnx
from trainer.export.open_clip_folder import write_open_clip_folder
from trainer.export.transformers_folder import write_transformers_folder
from trainer.inference import load_trained

Format = Literal["itm", "open_clip", "transformers", "onnx"]


def find_source(path: Path) -> Path:
    """The exported model or checkpoint that a path names. Raises `RunError`."""
    return path if is_model_folder(path) else find_checkpoint(path).path


def export_model(path: Path, out: Path, format: Format = "itm", momentum: bool = False) -> list[str]:
    """Write the model of `path` to a new folder, which appears when it is whole and was read back.

    Returns what a user should know, a line each. Raises `RunError`.
    """
    if out.exists():
        raise RunError(f"--out {out}: is there already; remove it, or give another folder")
    trained = load_trained(path, momentum)
    out.parent.mkdir(parents=True, exist_ok=True)
    with building(out) as folder:
        return _WRITERS[format](trained, folder)


def _write_ours(trained: Trained, folder: Path) -> list[str]:
    write_model_folder(trained, folder)
    again = read_model_folder(folder).encoders.state_dict()
    for name, tensor in trained.encoders.state_dict().items():
        assert torch.equal(tensor, again[name]), name
    return []


_WRITERS: dict[Format, Callable[[Trained, Path], list[str]]] = {
    "itm": _write_ours,
    "open_clip": write_open_clip_folder,
    "transformers": write_transformers_folder,
    "onnx": write_onnx,
}
