"""Starts the processes of a run on this machine, and ends them together."""

import logging
import os
import signal
import sys
from multiprocessing.queues import SimpleQueue
from typing import Any

from model.errors import ModelError
from shards.errors import DataError
from shards.parallel import end_with_parent, uninterrupted
from trainer.distributed import World, free_port
from trainer.errors import RunError
from trainer.plan import Plan

PATIENCE = 10.0
"""Seconds in which an interrupted process is to end."""


def launch(plan: Plan) -> None:
    """Train with `plan.processes` processes on this machine: in this one, or in as many new ones.

    The first user's error of any process is raised here; the others are ended with it. Should this process
    be killed, they end by themselves.
    """
    from trainer.loop import train

    if plan.processes == 1:
        train(plan, World())
        return
    import multiprocessing as mp

    import torch
    from torch.multiprocessing.spawn import ProcessException, ProcessRaisedException, start_processes

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // plan.processes)))
    errors: SimpleQueue[str] = mp.get_context("spawn").SimpleQueue()
    if 0 < torch.cuda.device_count() < plan.processes:
        raise RunError(
            f"--processes {plan.processes}: this machine has {torch.cuda.device_count()} GPUs; start fewer"
        )
    # it would say beside the one line that it ends the other processes
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    try:
        spawn: Any = start_processes
        with uninterrupted():
            running = spawn(
                _main, (plan, free_port(), errors), nprocs=plan.processes, join=False, start_method="spawn"
            )
        try:
            while not running.join():
                pass
        except KeyboardInterrupt:  # as a rule they heard it too, and end their loaders
            for process in running.processes:
                process.join(PATIENCE)
                process.kill()
            raise
    except ProcessException as error:
        # a process that lost its peer may be seen before the one that had the user's error
        if not errors.empty():
            raise RunError(errors.get()) from None
        if isinstance(error, ProcessRaisedException):
            raise
        raise RunError(f"{error}; a signal, or out of memory? `itm train` with the same run.dir resumes") from None


def _main(rank: int, plan: Plan, port: int, errors: "SimpleQueue[str]") -> None:
    # torch asks the system for a SIGINT, which a background job ignores
    end_with_parent()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(plan.processes),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    from trainer.loop import train

    try:
        train(plan, World(rank, plan.processes, rank))
    except (RunError, DataError, ModelError, OSError) as error:
        errors.put(str(error))
        sys.exit(1)
