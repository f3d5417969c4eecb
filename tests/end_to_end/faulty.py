"""`itm`, but one rank does wrong in one step, as `FAULT` tells: `KIND RANK STEP`.

`flip`: a bit of its queue changes. `nan`: its loss is not a number. `overflow`: its gradients are not finite;
`overflow*`: nor are they when it is tried again. `refuse`: it has a user's error. `crash`: it has a fault of its
own. `kill`: the system ends it. `hang`: it sleeps. `stop`: a scheduler asks it to end, and does not ask once.
"""

import os
import signal
import time
from typing import Any

import torch

from shards.batch import Batch
from trainer.cli import app
from trainer.errors import RunError
from trainer.loop import Trainer

_step = Trainer._step


def _faulty(trainer: Trainer, batch: Batch) -> Any:
    kind, rank, step = os.environ["FAULT"].split()
    due = trainer.world.rank == int(rank) and trainer.step == int(step) - 1
    if due and (kind.endswith("*") or not hasattr(trainer, "went_wrong")):  # a skipped step is tried again
        trainer.went_wrong = True  # type: ignore[attr-defined]
        _do(kind.removesuffix("*"), trainer)
    return _step(trainer, batch)


def _do(kind: str, trainer: Trainer) -> None:
    framework = trainer.framework
    if kind == "flip":
        framework.queue.images.view(torch.int32)[7, 3] ^= 1
    elif kind in ("nan", "overflow"):
        sum_up = framework._sum

        def spoilt(step: Any) -> dict[str, torch.Tensor]:
            framework._sum = sum_up
            losses = sum_up(step)
            spoil = _Infinite.apply if kind == "overflow" else lambda loss: loss * float("nan")
            return losses | {"loss": spoil(losses["loss"])}

        framework._sum = spoilt
    elif kind == "refuse":
        raise RunError("a user's error in the middle")
    elif kind == "crash":
        raise AssertionError("a fault in the middle")
    elif kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "stop":
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
            signal.raise_signal(number)
    elif kind == "hang":
        time.sleep(float(os.environ["SECONDS"]))


class _Infinite(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, loss: torch.Tensor) -> torch.Tensor:
        return loss.clone()

    @staticmethod
    def backward(_ctx: Any, *grad_outputs: torch.Tensor) -> torch.Tensor:
        return grad_outputs[0] * float("inf")


Trainer._step = _faulty  # type: ignore[method-assign]

if __name__ == "__main__":
    app()
