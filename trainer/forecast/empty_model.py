"""A framework without storage, and how many numbers its parts hold."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate import init_empty_weights
from torch._subclasses.fake_tensor import FakeTensorMode

from model.frameworks import Framework
from trainer.config import Recipe
from trainer.engine import build_encoders, build_framework

_PROTOTYPES, _MOMENTUM, _QUEUE = "terms.prototypes.", "momentum.", "queue."


@dataclass(frozen=True)
class Counts:
    """Parameters by who changes them, and bytes of what is no parameter."""

    trained: int
    """Parameters with a gradient, learned prototypes included."""
    frozen: int
    momentum: int
    """Of the momentum encoders; a tower that they share is not theirs."""
    prototypes: int
    """Learned prototypes, which are among the trained."""
    largest: int
    """Trained parameters of the largest tensor."""
    buffers: int
    """Bytes of buffers of the encoders, the momentum encoders and the losses."""
    bank: int
    """Bytes of buffers of the prototype bank: its record, and prototypes that are averaged."""
    queue_rows: int
    """Bytes of the queue's embeddings on this rank."""
    queue_notes: int
    """Bytes of what is known of the queue's pairs, whole on every rank."""


@contextmanager
def empty_framework(recipe: Recipe, steps_per_epoch: int, total_steps: int) -> Iterator[Framework]:
    """The recipe's framework in training mode, without weights: none are read or allocated.

    Inside of this context all operations give shapes and dtypes, and compute nothing. Raises `ModelError`.
    """
    # buffers too: open_clip moves its model to a device, and what has no storage can only move whole
    with init_empty_weights(include_buffers=True):
        encoders = build_encoders(recipe.model, recipe.run.seed, pretrained=False)
        framework = build_framework(encoders, recipe, steps_per_epoch, total_steps)
    # what was made from a file has stayed real; its results are not
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield _on_cpu(framework).train()


def _on_cpu(framework: Framework) -> Framework:
    """The same with tensors that say that they are on the CPU: an autocast and attention ask for a device."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        return framework.to_empty(device="cpu")
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


def count(framework: Framework) -> Counts:
    """Of a framework, empty or not."""
    parameters = dict(framework.named_parameters())
    trained = [one.numel() for one in parameters.values() if one.requires_grad]
    momentum = sum(one.numel() for name, one in parameters.items() if name.startswith(_MOMENTUM))
    learned = [one.numel() for name, one in parameters.items() if name.startswith(_PROTOTYPES)]
    buffers = {name: one.nbytes for name, one in framework.named_buffers()}
    rows = sum(size for name, size in buffers.items() if name in (f"{_QUEUE}images", f"{_QUEUE}texts"))
    queue = sum(size for name, size in buffers.items() if name.startswith(_QUEUE))
    bank = sum(size for name, size in buffers.items() if name.startswith(_PROTOTYPES))
    return Counts(
        trained=sum(trained),
        frozen=sum(one.numel() for one in parameters.values()) - sum(trained) - momentum,
        momentum=momentum,
        prototypes=sum(learned),
        largest=max(trained, default=0),
        buffers=sum(buffers.values()) - queue - bank,
        bank=bank,
        queue_rows=rows,
        queue_notes=queue - rows,
    )
