"""Where the processes of a run meet before anything else, and find out whether all came, each to its own device."""

import json
import os
import socket
import time
from datetime import timedelta

import torch
import torch.distributed as dist
import typer
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from trainer.distributed import TIMEOUT, World
from trainer.errors import RunError

PATIENCE = timedelta(minutes=10)
"""A run whose processes have not all come by then is given up."""
NOTICE = timedelta(seconds=30)
"""After which the main process says for whom it waits."""


def meet(world: World, device: torch.device) -> Store:
    """The store at MASTER_ADDR and MASTER_PORT, once all processes have come to it; every rank calls it.

    Where some do not come, two have one GPU, or some alone have GPUs, the main process raises `RunError`, which the
    user reads once, and the others end with 1. Any process raises it that cannot come to the place, or whose rank
    another has.
    """
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        store = _join(world)
        # what the main process finds out after all its patience must still arrive
        store.set_timeout(PATIENCE + NOTICE)
        own = f"device/{world.rank}"
        if store.add(f"came/{world.rank}", 1) > 1:
            raise RunError(
                f"two processes are number {world.rank} of {world.size} at {place}; give each its own RANK"
            )
        store.set(own, json.dumps([socket.gethostname(), _identity(device)]))
        if world.is_main:
            missing = _wait_for_all(store, world, place)
            store.set("verdict", missing or complaint(_devices(store, world)) or "")
        verdict = store.get("verdict").decode()
    except dist.DistError as error:
        raise RunError(
            f"process {world.rank} of {world.size} has not met the others at {place} "
            f"({str(error).splitlines()[0].rstrip('.')}); start as many processes as WORLD_SIZE says, or give "
            "another MASTER_PORT if this one is taken"
        ) from None
    if verdict and not world.is_main:
        raise SystemExit(1)
    if verdict:
        time.sleep(1)  # the store goes with this process, and the others still read
        raise RunError(verdict)
    store.set_timeout(TIMEOUT)
    return PrefixStore("group", store)


def complaint(devices: list[tuple[str, str]]) -> str | None:
    """What is wrong with the (host, device) of each rank; a device is `cpu` or the identity of a GPU."""
    on_gpu = [device != "cpu" for _, device in devices]
    if any(on_gpu) and not all(on_gpu):
        rank = on_gpu.index(False)
        return (
            f"process {rank} finds no GPU on {devices[rank][0]}, others do; start processes where there are GPUs "
            "alone, or hide them from all with CUDA_VISIBLE_DEVICES="
        )
    first: dict[tuple[str, str], int] = {}
    for rank, place in enumerate(devices):
        if place[1] != "cpu" and first.setdefault(place, rank) != rank:
            return (
                f"processes {first[place]} and {rank} have the same GPU of {place[0]}; start as many processes a "
                "node as it has GPUs"
            )
    return None


def _join(world: World) -> Store:
    # torchrun's agent keeps the store itself, through restarts
    by_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        world.size,
        is_master=world.is_main and not by_agent,
        timeout=PATIENCE,
        wait_for_workers=False,
    )
    return PrefixStore(f"itm/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _identity(device: torch.device) -> str:
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else "cpu"


def _wait_for_all(store: Store, world: World, place: str) -> str | None:
    """None, or who did not come."""
    start, noticed = time.monotonic(), False
    for rank in range(world.size):
        while not store.check([f"device/{rank}"]):
            waited = timedelta(seconds=time.monotonic() - start)
            if waited > PATIENCE:
                return (
                    f"process {rank} of {world.size} did not come to {place} in {PATIENCE}; "
                    "start as many processes as WORLD_SIZE says"
                )
            if waited > NOTICE and not noticed:
                typer.echo(f"waiting for process {rank} of {world.size} at {place}", err=True)
                noticed = True
            time.sleep(0.05)
    return None


def _devices(store: Store, world: World) -> list[tuple[str, str]]:
    told = store.multi_get([f"device/{rank}" for rank in range(world.size)])
    return [tuple(json.loads(one)) for one in told]
