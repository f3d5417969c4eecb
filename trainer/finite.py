"""A loss or a gradient that is not finite: found without waiting for the device, and told with its samples."""

import json
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import torch.distributed as dist

from shards.atomic import replacing
from shards.reader import ShardReader
from shards.training import TrainingSet
from trainer.distributed import World
from trainer.errors import RunError

FOLDER = "nonfinite"
_REMEMBERED = 4
"""Batches kept: all ranks know of a bad one two steps later."""
_WHAT = ("the loss is", "the gradients are")


@torch.no_grad()
def any_not_finite(values: dict[str, torch.Tensor]) -> torch.Tensor:
    """() bool on the device: whether any of a step's values is not finite."""
    return ~torch.stack([value.detach().float() for value in values.values()]).isfinite().all()


@dataclass(frozen=True)
class _Attempt:
    """A batch that was trained on."""

    number: int
    """Counted over applied and skipped steps alike, the same on all ranks."""
    step: int
    samples: torch.Tensor
    flags: torch.Tensor
    """(2,) bool in the host's memory, once `ready`: loss, gradients."""
    ready: torch.cuda.Event | None


class FiniteCheck:
    """This rank's last batches, and whether what came of them was finite."""

    def __init__(self, run_dir: Path, training_set: TrainingSet, world: World) -> None:
        self.run_dir, self.training_set, self.world = run_dir, training_set, world
        self._attempts: deque[_Attempt] = deque(maxlen=_REMEMBERED)
        self._count = 0

    def add(self, step: int, samples: torch.Tensor, loss: torch.Tensor, gradients: torch.Tensor) -> None:
        """Note a step on (b,) samples; two () bool tell whether its loss and its gradients are not finite."""
        flags, ready = torch.stack([loss, gradients]), None
        if flags.device.type == "cuda":
            host = torch.empty(flags.shape, dtype=flags.dtype, pin_memory=True)
            flags = host.copy_(flags, non_blocking=True)
            ready = torch.cuda.Event()
            ready.record()
        self._count += 1
        self._attempts.append(_Attempt(self._count, step, samples, flags, ready))

    def found(self, *, wait: bool) -> bool:
        """Whether any of the last batches was bad. Without `wait`, the newest is left out on a GPU."""
        return self._first_bad(wait) is not None

    def _first_bad(self, wait: bool) -> tuple[int, int] | None:
        """The number of the attempt, and what of it, as a place in `_WHAT`."""
        for attempt in self._attempts:
            if attempt.ready is not None:
                if not wait and attempt is self._attempts[-1]:
                    continue
                attempt.ready.synchronize()  # long since, but for the newest
            flags = attempt.flags.tolist()
            if any(flags):
                return attempt.number, flags.index(True)
        return None

    def stop(self, mend: str) -> NoReturn:
        """Write down the samples of the first bad batch, of all ranks, and raise `RunError` that names the file.

        All ranks call it together, once one of them has `found`.
        """
        everyone: list[Any] = [None] * self.world.size
        recent = {one.number: (one.step, one.samples.tolist()) for one in self._attempts}
        dist.all_gather_object(everyone, (self._first_bad(wait=True), recent))
        # the loss before the gradients, which its rank has spoilt for all
        first = number, place = min(bad for bad, _ in everyone if bad is not None)
        ranks, what = [rank for rank, (bad, _) in enumerate(everyone) if bad == first], _WHAT[place]
        step = recent[number][0]
        path = self.run_dir / FOLDER / f"step-{step:08d}.json"
        if self.world.is_main:
            samples = [
                {"rank": rank, **one}
                for rank, (_, attempts) in enumerate(everyone)
                for one in name_samples(self.training_set, attempts[number][1])
            ]
            content = {"step": step, "message": f"{what} not finite", "ranks": ranks, "samples": samples}
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as stream:
                stream.write(json.dumps(content, indent=1).encode() + b"\n")
        where = f" on rank {ranks[0]}" if len(ranks) < self.world.size else ""
        raise RunError(f"step {step}: {what} not finite{where}; its samples are listed in {path}; {mend}")


def name_samples(training_set: TrainingSet, samples: list[int]) -> list[dict[str, Any]]:
    """Shard, row and key of samples given by their numbers. Raises `DataError` where an index cannot be read."""
    readers = [ShardReader(part.manifest) for part in training_set.parts]
    named = []
    for sample in samples:
        part = int(np.searchsorted(training_set.first_sample, sample, side="right")) - 1
        manifest, within = training_set.parts[part].manifest, sample - training_set.first_sample[part]
        shard = int(np.searchsorted(manifest.first_sample, within, side="right")) - 1
        row = within - int(manifest.first_sample[shard])
        key = readers[part].index(shard).key(row)
        named.append({"sample": sample, "shard": manifest.shard_location(shard), "row": row, "key": key})
    return named
