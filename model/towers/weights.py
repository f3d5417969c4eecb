"""Weights from a file or a folder, matched with a tower's by name. Nothing that is read is executed."""

import json
import re
import struct
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from errno import EINVAL
from itertools import accumulate
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from model.errors import ModelError

_INDEX = "model.safetensors.index.json"
_IN_FOLDER = (
    "weights.safetensors",  # a checkpoint of ours
    "model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)
UNREADABLE = (
    AssertionError,
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    OSError,
    OverflowError,
    RuntimeError,
    SafetensorError,
    TypeError,
    UnpicklingError,
    ValueError,
    struct.error,
)
"""What is raised on a file of something else: torch takes its bytes for instructions to a stack machine, and these
fail in all the ways in which Python's own do."""
_NO_WEIGHTS = "is no weights file: give a .safetensors or a state_dict saved by torch.save"
_HOLDS_A_MODEL = re.compile(r"GLOBAL [\w.]+ was not an allowed|TorchScript")
_CUT_OFF = re.compile("finding central directory|not fully covered")


@dataclass
class Weights:
    """Named tensors, and which of them have been taken."""

    source: str
    """For messages: the setting and its value."""
    tensors: dict[str, torch.Tensor]
    used: set[str] = field(default_factory=set)

    def take(self, name: str) -> torch.Tensor:
        """Raises `ModelError` for one with NaN or infinity in it."""
        require_finite(self.source, name, self.tensors[name])
        self.used.add(name)
        return self.tensors[name]

    def report(self) -> str:
        """How many have been taken, and what has not, in one line."""
        left = grouped(self.tensors.keys() - self.used, self.used)
        taken = f"{self.source}: {len(self.used):,} of its {len(self.tensors):,} weights taken"
        return f"{taken}; not used: {', '.join(left)}" if left else taken


def grouped(names: Iterable[str], apart: Iterable[str]) -> list[str]:
    """`names` by the shortest beginnings, in whole parts, that none of `apart` has: `heads.* (40)`."""
    taken, groups = {start for name in apart for start in _beginnings(name)}, dict[str, list[str]]()
    for name in sorted(names):
        start = next((start for start in _beginnings(name) if start not in taken), name)
        groups.setdefault(start, []).append(name)
    return [inside[0] if len(inside) == 1 else f"{start}.* ({len(inside):,})" for start, inside in groups.items()]


def _beginnings(name: str) -> Iterable[str]:
    return accumulate(name.split("."), "{}.{}".format)


def require_finite(source: str, name: str, tensor: torch.Tensor) -> None:
    """Raises `ModelError` where a weight is not finite as float32, in which it is kept."""
    if not tensor.float().isfinite().all():
        raise ModelError(f"{source}: {name} has values that are not finite; give weights without NaN and infinity")


def read_weights(path: Path, where: str) -> Weights:
    """Read a .safetensors file, a pickle of tensors, or a folder that holds such.

    Folders are checkpoints of ours, of `transformers` and of open_clip. `where` is the setting that named it.
    Raises `ModelError`.
    """
    source = f"{where} {str(path)!r}"
    tensors: dict[str, torch.Tensor] = {}
    for file in _files(path, source):
        try:
            content: Any = load_file(file) if file.suffix == ".safetensors" else _unpickle(file)
        except UNREADABLE as error:
            inside = "" if file == path else f" {file.name}"
            raise ModelError(f"{source}:{inside} {what_is_wrong(error)}") from None
        if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
            content = content["state_dict"]  # a training checkpoint of open_clip
        if isinstance(content, dict):
            tensors |= {
                name: one
                for name, one in content.items()
                if isinstance(name, str) and isinstance(one, torch.Tensor)
            }
    if not tensors:
        raise ModelError(f"{source}: holds no named weights; save the model's state_dict() with torch.save")
    return Weights(source, tensors)


def _unpickle(file: Path) -> Any:
    with warnings.catch_warnings(action="ignore"):  # they advise to run what is in the file
        return torch.load(file, map_location="cpu", weights_only=True)


def what_is_wrong(error: Exception) -> str:
    """What the reader's error means to whoever named the file; its own words advise to run the file.

    Of a file that is too short, torch reads before the beginning, which is an invalid argument (EINVAL).
    """
    if isinstance(error, OSError) and error.strerror and error.errno != EINVAL:
        return f"cannot be read ({error.strerror})"
    if _CUT_OFF.search(str(error)):
        return "is cut off; copy it again"
    if _HOLDS_A_MODEL.search(str(error)):
        return "holds more than tensors, such as a whole model; save its state_dict() with torch.save"
    return _NO_WEIGHTS


def _files(path: Path, source: str) -> list[Path]:
    if not path.exists():
        raise ModelError(f"{source}: no such file or folder")
    if not path.is_dir():
        return [path]
    for name in _IN_FOLDER:
        if (path / name).is_file():
            return [path / name]
    if (path / _INDEX).is_file():
        try:
            return [
                path / name for name in sorted(set(json.loads((path / _INDEX).read_text())["weight_map"].values()))
            ]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise ModelError(f"{source}: {_INDEX} is damaged") from None
    hint = "; it is a run: give one of its checkpoints/step-*" if (path / "checkpoints").is_dir() else ""
    raise ModelError(f"{source}: holds none of {', '.join((*_IN_FOLDER, _INDEX))}{hint}")


def load_matching(module: nn.Module, weights: Weights, label: str) -> list[str] | None:
    """Copy the weights that are `module`'s into it, whatever stands before their names.

    They are found by its input embedding: the first convolution or embedding. Of several sets, the one with
    the most of its names is taken, then the one with the shortest prefix. Returns a line for each weight of
    the module that was not there, named with `label` before it, or None where none was. Raises `ModelError`
    when one has another shape or is not finite.
    """
    own = module.state_dict()
    prefix = find_prefix(module, weights.tensors)
    if prefix is None:
        return None
    theirs = {name: weights.take(prefix + name) for name in own if prefix + name in weights.tensors}
    if other := [name for name in theirs if theirs[name].shape != own[name].shape]:
        name = other[0]
        raise ModelError(
            f"{weights.source}: weights of another model: {prefix}{name} is {list(theirs[name].shape)} there and "
            f"{list(own[name].shape)} here ({len(other)} such)"
        )
    module.load_state_dict(theirs, strict=False)
    return [f"{label}{name}: not in {weights.source}, left random" for name in own if name not in theirs]


def find_prefix(module: nn.Module, names: Iterable[str]) -> str | None:
    """What stands before the names of `module`'s weights, None where its input embedding is not among them."""
    known, own = set(names), module.state_dict().keys()
    inputs = (nn.Conv2d, nn.Embedding)
    key = next(f"{name}.weight" for name, part in module.named_modules() if isinstance(part, inputs))
    prefixes = [name.removesuffix(key) for name in known if name == key or name.endswith(f".{key}")]
    return min(
        prefixes,
        key=lambda prefix: (-sum(prefix + name in known for name in own), len(prefix), prefix),
        default=None,
    )
