"""Weights from a file or a folder, matched with a tower's by name. Nothing that is read is executed."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
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
_UNREADABLE = (EOFError, KeyError, OSError, RuntimeError, SafetensorError, UnpicklingError, ValueError)


@dataclass
class Weights:
    """Named tensors, and which of them have been taken."""

    source: str
    """For messages: the setting and its value."""
    tensors: dict[str, torch.Tensor]
    used: set[str] = field(default_factory=set)

    def take(self, name: str) -> torch.Tensor:
        self.used.add(name)
        return self.tensors[name]

    def unused(self) -> list[str]:
        return [f"{name}: in {self.source}, not used" for name in sorted(self.tensors.keys() - self.used)]


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
        except _UNREADABLE as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ModelError(f"{source}: cannot be read as weights ({reason})") from None
        if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
            content = content["state_dict"]  # a training checkpoint of open_clip
        if isinstance(content, dict):
            tensors |= {name: one for name, one in content.items() if isinstance(one, torch.Tensor)}
    if not tensors:
        raise ModelError(f"{source}: holds no named weights")
    return Weights(source, tensors)


def _unpickle(file: Path) -> Any:
    return torch.load(file, map_location="cpu", weights_only=True)


def _files(path: Path, source: str) -> list[Path]:
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
    when one has another shape.
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
