"""This process's place in the world, from whichever launcher started it."""

import os
import re
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from trainer.errors import RunError
from trainer.launchers import check_launcher

TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class World:
    """Rank and size over all nodes, and the rank within this node."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def slurm_environment(environment: dict[str, str]) -> dict[str, str]:
    """The variables that torch expects, from those of an srun task; empty outside one.

    `MASTER_ADDR` is the first host of the node list and the port follows from the job id, so all tasks agree
    without talking. A job step of one task that was not started by srun as such is left alone.
    """
    if "SLURM_PROCID" not in environment or int(environment.get("SLURM_STEP_NUM_TASKS", "1")) < 2:
        return {}
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "MASTER_ADDR": environment.get("MASTER_ADDR") or first_host(environment["SLURM_STEP_NODELIST"]),
        "MASTER_PORT": environment.get("MASTER_PORT") or str(20000 + int(environment["SLURM_JOB_ID"]) % 20000),
    }


def first_host(node_list: str) -> str:
    """The first host of a Slurm node list: `gpu[03-05,7]-ib,login` -> `gpu03-ib`."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", node_list)
    assert first, f"an empty node list: {node_list!r}"
    return re.sub(r"\[([^\]\-,]+)[^\]]*\]", r"\1", first[0])


def read_world() -> World:
    """The world that the environment describes: torchrun's variables, else srun's, else one process.

    Raises `RunError` where the launchers' variables do not fit together.
    """
    check_launcher(os.environ)
    if "RANK" not in os.environ:
        os.environ.update(slurm_environment(dict(os.environ)))
    if "RANK" not in os.environ:
        return World()
    missing = [
        name for name in ("WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ
    ]
    if missing:
        raise RunError(f"RANK is set but {', '.join(missing)} is not; start with torchrun, srun or --processes")
    return World(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"]))


def device_of(world: World) -> torch.device:
    """A GPU of this node where there is one, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", world.local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def start(world: World, device: torch.device) -> None:
    """Join the process group, and have DeepSpeed use it; it needs one even for one process."""
    from trainer.deepspeed_setup import prepare_deepspeed

    if "RANK" not in os.environ:
        port = free_port()
        names = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        os.environ.update(names | {"MASTER_PORT": str(port)})
    if device.type == "cuda":
        # DeepSpeed takes it for the device's number, which it is not where each task sees one GPU alone
        os.environ["LOCAL_RANK"] = str(device.index)
    join(world, device)
    prepare_deepspeed(dist.get_backend())


def join(world: World, device: torch.device) -> None:
    """Join the process group: NCCL on GPUs, gloo on the CPU. Raises `RunError` where the world is another."""
    from trainer.rendezvous import meet

    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend,
        store=meet(world, device),
        timeout=TIMEOUT,
        rank=world.rank,
        world_size=world.size,
        device_id=device if backend == "nccl" else None,
    )


def leave() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def free_port() -> int:
    """A TCP port of this machine that was free a moment ago."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
