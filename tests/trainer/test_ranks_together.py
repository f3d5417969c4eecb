"""What ranks tell each other between steps, in three real processes."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn

from trainer.agreement import Agreement
from trainer.distributed import World, free_port
from trainer.errors import RunError
from trainer.sentinel import check_ranks

WORLD = 3


class Kept(nn.Module):
    """A weight, statistics of a batch norm, and ids."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("ids", torch.arange(5))


def flags_of(rank: int) -> dict[str, list[list[bool]]]:
    """What every call returns, where rank r raises flag 0 at call r, and rank 2 flag 1 at calls 1 and 5."""
    agreement = Agreement(World(rank, WORLD), 2)
    exchanged = [agreement.exchange([call == rank, rank == 2 and call == 1]) for call in range(5)]
    settled = [agreement.settle([False, rank == 2]), agreement.settle([rank == 1, False])]
    return {"exchanged": exchanged, "settled": settled, "after": [agreement.exchange([False, False])]}


def verdict(rank: int, module: Kept, state: dict[str, int]) -> str:
    try:
        check_ranks(module, state, torch.device("cpu"), 500)
    except RunError as error:
        return str(error).split(";")[0]
    return "alike"


def verdicts_of(rank: int) -> list[str]:
    module, position = Kept(), {"the loader's position": 7}
    said = [verdict(rank, module, position)]
    if rank == 0:
        module.norm.running_var.view(torch.int32)[2] ^= 1
    said.append(verdict(rank, module, position))
    module = Kept()
    said.append(verdict(rank, module, {"the loader's position": 7 + (rank == 1)}))
    if rank == 2:
        with torch.no_grad():
            module.norm.weight[1] += 1e-6
        module.ids[0] = 9
    said.append(verdict(rank, module, position))
    # a weight of which each rank has its own part is not comparable
    module = Kept()
    module.norm.weight.ds_tensor = torch.full((2,), float(rank))
    module.norm.weight.data = torch.full((1,), float(rank))
    said.append(verdict(rank, module, position))
    return said


def measure(rank: int, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    torch.save({"flags": flags_of(rank), "verdicts": verdicts_of(rank)}, Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    spawn(measure, (free_port(), str(folder)), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


def test_all_ranks_learn_of_a_flag_at_the_same_call(ranks: list[dict[str, Any]]) -> None:
    nothing, first, both = [False, False], [True, False], [True, True]
    for rank in ranks:
        flags = rank["flags"]
        assert flags["exchanged"] == [nothing, first, both, first, nothing]
        assert flags["settled"] == [[False, True], first], "what was raised at once, and no longer"
        assert flags["after"] == [nothing]


def test_a_rank_that_differs_is_named_with_what_differs(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["verdicts"] == [
            "alike",
            "step 500: rank 0 differs in norm.running_var",
            "step 500: rank 1 differs in the loader's position",
            "step 500: rank 2 differs in norm.weight and ids",
            "alike",
        ]
