"""What the losses of a step read of the encoders."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch

from model.features import Encoded

Kind = tuple[torch.Tensor, torch.Tensor]
"""(b, D) embeddings of one kind, of the images and of the texts."""

Keys = list[Kind] | None
"""All kinds by the momentum encoders; None where there are none."""


@dataclass(frozen=True)
class Encodings:
    """b pairs after the encoders. The losses see nothing else of them."""

    image: Encoded
    text: Encoded
    kinds: list[Kind]
    """The embedding used for retrieval first; with consensus then the instance's and the consensus's."""
    concepts: tuple[torch.Tensor, torch.Tensor] | None
    """(b, q) log distributions of the images and of the texts over the concepts."""


def tensors(tree: Any) -> Iterator[torch.Tensor]:
    """Every tensor in dataclasses, lists and tuples, in a fixed order: what is added to them is not forgotten."""
    if isinstance(tree, torch.Tensor):
        yield tree
    elif tree is not None:
        for part in [getattr(tree, one.name) for one in fields(tree)] if is_dataclass(tree) else tree:
            yield from tensors(part)


def concatenate(trees: Sequence[Any]) -> Any:
    """As `torch.cat` along the rows, of the tensors of alike trees."""
    return trees[0] if len(trees) == 1 else map_tensors(torch.cat, trees)


def as_leaves(tree: Any) -> Any:
    """The same values where graphs begin: a backward pass leaves their gradients with them."""
    return map_tensors(lambda one: one[0].detach().requires_grad_(one[0].is_floating_point()), [tree])


def map_tensors(function: Callable[[list[torch.Tensor]], torch.Tensor], trees: Sequence[Any]) -> Any:
    """A tree of what the function makes of the tensors that stand at one place in all of the trees."""
    first, kind = trees[0], type(trees[0])
    if first is None:
        return None
    if isinstance(first, torch.Tensor):
        return function(list(trees))
    if is_dataclass(first):
        names = [one.name for one in fields(first)]
        return kind(**{name: map_tensors(function, [getattr(tree, name) for tree in trees]) for name in names})
    return kind(map_tensors(function, parts) for parts in zip(*trees, strict=True))
