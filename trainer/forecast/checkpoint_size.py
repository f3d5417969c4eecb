"""How large a run's checkpoints are, from the names and shapes of what they hold."""

from dataclasses import dataclass

import torch

from model.frameworks import Framework
from model.memory.queue import SHARDED
from trainer.partitions import MOMENTS
from trainer.tensor_files import Entry, file_bytes, sort_entries


@dataclass(frozen=True)
class CheckpointSize:
    """Bytes on disk of one checkpoint; beside these files lie some KB of text, and the concepts."""

    weights: int
    """Exactly."""
    optimizer: int
    """All ranks' files; exact but for the names of spans, which depend on how ranks share out the state."""

    @property
    def total(self) -> int:
        return self.weights + self.optimizer


def checkpoint_size(framework: Framework, processes: int, stage: int) -> CheckpointSize:
    """Of a framework, empty or not, on so many processes."""
    parameters = dict(framework.named_parameters())
    persistent = framework.state_dict().keys()
    buffers = {name: one for name, one in framework.named_buffers() if name in persistent}
    shapes = {name: (one.dtype, tuple(one.shape)) for name, one in {**parameters, **buffers}.items()}
    if framework.queue is not None:  # whole, also where ranks share it out
        for name in SHARDED:
            dtype, (_, width) = shapes[f"queue.{name}"]
            shapes[f"queue.{name}"] = dtype, (framework.queue.size, width)
    weights = file_bytes(sort_entries(Entry(name, *shape) for name, shape in shapes.items()))
    trained = {name: one.numel() for name, one in parameters.items() if one.requires_grad}
    return CheckpointSize(weights, sum(file_bytes(entries) for entries in _spans(trained, processes, stage)))


def _spans(trained: dict[str, int], processes: int, stage: int) -> list[list[Entry]]:
    """The moments in each rank's file: of every parameter its part, or consecutive parts of all together."""
    files: list[list[Entry]] = [[] for _ in range(processes)]
    total, passed = sum(trained.values()), 0
    for name, numel in trained.items():
        for rank, entries in enumerate(files):
            if stage == 3:
                size = -(-numel // processes)
                start, stop = min(rank * size, numel), min((rank + 1) * size, numel)
            else:
                start = max(total * rank // processes - passed, 0)
                stop = min(total * (rank + 1) // processes - passed, numel)
            if start < stop:
                keys = [f"{name}/{moment}@{start}" for moment in MOMENTS]
                entries += [Entry(key, torch.float32, (stop - start,)) for key in keys]
        passed += numel
    return files
