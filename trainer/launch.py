"""Starts the processes of a run on this machine, and ends them together."""

import os
import signal
import sys
import time
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from multiprocessing.queues import SimpleQueue
from typing import NoReturn

from model.errors import ModelError
from shards.errors import DataError
from shards.parallel import end_with_parent
from shards.progress import counted
from shards.signals import held
from trainer.distributed import World, free_port
from trainer.errors import RunError
from trainer.failures import LostPeerError
from trainer.plan import Plan
from trainer.preemption import SAVED, StopRequest

POLL_SECONDS = 0.2
LAST_WORDS_SECONDS = 5.0
"""What a run's other processes are left with after one has failed: that one may have lost a peer itself."""


def launch(plan: Plan, stop: StopRequest) -> bool:
    """Train with `plan.processes` processes on this machine: in this one, or in as many new ones.

    Returns whether the run was stopped before its end. The first user's error of any process is raised here;
    the others are ended with it. Should this process be killed, they end by themselves.
    """
    if stop.signal:
        return True
    from trainer.loop import train

    if plan.processes == 1:
        return train(plan, World(), stop)
    import torch

    if 0 < (gpus := torch.cuda.device_count()) < plan.processes:
        raise RunError(f"--processes {plan.processes}: this machine has {counted(gpus, 'GPU')}; start fewer")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _cores() // plan.processes)))
    context = get_context("spawn")
    errors: SimpleQueue[str] = context.SimpleQueue()
    port = free_port()
    processes: list[SpawnProcess] = []
    stop.hold_interrupts()
    try:
        with held():
            for rank in range(plan.processes):
                process = context.Process(target=_main, args=(rank, plan, port, errors, stop.deadline))
                process.start()
                processes.append(process)
        _watch(processes, errors, stop)
    finally:
        for process in processes:
            process.kill()
            process.join()
    codes = {process.exitcode for process in processes}
    assert codes in ({0}, {SAVED}), "ranks agree on whether they have come to the end"
    return codes == {SAVED}


def _watch(processes: list[SpawnProcess], errors: "SimpleQueue[str]", stop: StopRequest) -> None:
    """Wait for the processes to end, and hand on a request to stop. Raises `RunError` when one has failed."""
    running, handed_on = list(processes), False
    while running:
        if stop.signal and not handed_on:
            handed_on = True
            for process in running:
                assert process.pid is not None
                os.kill(process.pid, stop.signal)
        wait([process.sentinel for process in running], POLL_SECONDS)
        running = [process for process in running if process.exitcode is None]
        if any(process.exitcode not in (None, 0, SAVED) for process in processes):
            _raise_first(processes, errors)


def _raise_first(processes: list[SpawnProcess], errors: "SimpleQueue[str]") -> NoReturn:
    end = time.monotonic() + LAST_WORDS_SECONDS
    while errors.empty() and time.monotonic() < end:
        for rank, process in enumerate(processes):
            if process.exitcode is not None and process.exitcode < 0:
                name = signal.Signals(-process.exitcode).name
                raise RunError(
                    f"process {rank} was ended by {name}; out of memory? `itm train` with the same run.dir resumes"
                )
        if not (running := [process for process in processes if process.exitcode is None]):
            break
        wait([process.sentinel for process in running], POLL_SECONDS)
    raise RunError("a process has failed; what it said stands above" if errors.empty() else errors.get())


def _main(rank: int, plan: Plan, port: int, errors: "SimpleQueue[str]", deadline: float) -> None:
    stop = StopRequest()
    stop.listen_as_child(deadline)
    end_with_parent()
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(plan.processes),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    from trainer.loop import train

    try:
        stopped = train(plan, World(rank, plan.processes, rank), stop)
    except LostPeerError:
        sys.exit(1)  # this process's parent knows more
    except (RunError, DataError, ModelError, OSError) as error:
        errors.put(str(error))
        sys.exit(1)
    stop.close()
    sys.exit(SAVED if stopped else 0)


def _cores() -> int:
    """That this process may use: a scheduler may have given it a few of the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
