"""A run that only saves: a small model in one process, without DeepSpeed. And how to kill it while it does."""

import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch._dynamo  # AdamW does so when it is made, for seconds: in each forked process again
import torch.distributed as dist
from torch import nn

from shards.loader import Position
from trainer.checkpoint import Progress
from trainer.checkpoint_writer import CheckpointWriter
from trainer.config import Recipe
from trainer.lease import Lease


class Small(nn.Module):
    """Weights, one of them frozen, and buffers of several types."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 5)
        self.momentum = nn.Linear(6, 5).requires_grad_(False)
        self.register_buffer("ids", torch.arange(7))
        self.register_buffer("seen", torch.tensor([True, False, True]))
        self.register_buffer("scale", torch.tensor(2.0))
        self.register_buffer("not_kept", torch.zeros(2), persistent=False)


def small_engine() -> Any:
    """What a checkpoint needs of an engine at stage 0, after one step."""
    torch.manual_seed(3)
    module = Small()
    optimizer = torch.optim.AdamW(module.linear.parameters())
    module.linear(torch.ones(1, 6)).sum().backward()
    optimizer.step()
    return SimpleNamespace(
        module=module, optimizer=optimizer, device=torch.device("cpu"), zero_optimization_stage=lambda: 0
    )


def progress(step: int, rsum: float | None = None) -> Progress:
    return Progress(step, Position(0, step), [], None if rsum is None else {"rsum": rsum})


@contextmanager
def alone() -> Iterator[None]:
    """A process group of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def writing(
    run: Path,
    *,
    keep_last: int = 2,
    say: Callable[[str], None] = lambda _text: None,
    resumed_step: int | None = None,
) -> Iterator[tuple[CheckpointWriter, Any]]:
    """A writer and the engine that it saves."""
    recipe, engine = Recipe.model_validate({"checkpoint": {"keep_last": keep_last}}), small_engine()
    folder = run / "checkpoints"
    with Lease(run) as lease, CheckpointWriter(folder, engine, recipe, lease, say, resumed_step) as writer:
        yield writer, engine


def save_and_die(run: Path, step: int, calls: int | None, file_bytes: int | None) -> None:
    """Save one checkpoint, and be killed at the n-th call on files or when a file has so many bytes."""
    torch.set_num_threads(1)
    with alone(), writing(run, keep_last=1) as (writer, _):
        if calls is not None:
            _kill_at_call(calls, run / "checkpoints")
        if file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # kills at once, as SIGKILL does
        writer.save(progress(step))


def _kill_at_call(last: int, folder: Path) -> None:
    passed = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal passed
        named = any(str(folder) in str(argument) for argument in arguments)
        if named and (event == "open" or event.startswith(("os.", "shutil."))):
            passed += 1
            if passed == last:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
