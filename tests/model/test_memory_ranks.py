"""Prototype contrast, queue and bank in real processes over gloo: the same at any world size."""

import multiprocessing as mp
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn
from torch.nn.functional import normalize

from model.collectives import from_first, gather
from model.losses.prototypes import prototype_loss
from model.memory.bank import PrototypeBank, nearest_counts
from model.memory.clustering import reestimate, reseed
from model.memory.queue import MomentumQueue
from model.sinkhorn import sinkhorn

GLOBAL, WIDTH, COUNT = 8, 6, 5
VALID = torch.tensor([True, True, False, True, True, True, False, False])  # with 4 ranks the last has none


def rows(seed: int, count: int = GLOBAL) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(count, WIDTH, dtype=torch.float64, generator=generator), dim=1)


def measure(number: int, world: int) -> dict[str, Any]:
    """One rank's part of everything that talks to the others."""
    local = GLOBAL // world
    own = slice(number * local, (number + 1) * local)
    bank = PrototypeBank(COUNT, WIDTH).double()
    with torch.no_grad():
        bank.prototypes.copy_(2 * rows(2, COUNT))
    pairs = torch.stack([rows(0), rows(1)])[:, own].clone().requires_grad_()
    valid = VALID[own]
    scores = bank(pairs)
    loss = prototype_loss(scores[0], scores[1], valid, 0.1, 0.05, 3)
    # as the framework weighs anchors: the mean over the ranks is the mean over the valid
    (loss * (GLOBAL / VALID.sum())).mean().backward()
    assert pairs.grad is not None
    assert bank.prototypes.grad is not None
    prototype_grad = bank.prototypes.grad
    bank.record(nearest_counts(scores, valid), step=4)
    queue = MomentumQueue(11, WIDTH)
    for step in range(3):
        images, texts = gather(rows(10 + step)[own].float()), gather(rows(20 + step)[own].float())
        positions = number * local + torch.arange(local)
        queue.enter(images, texts, gather(positions * 3), gather(positions), gather(valid), step)
    points = rows(3, 40) if number == 0 else rows(4, 40)  # nobody but rank 0 reads them
    drifted = bank.prototypes.detach() + 1e-9 * number
    return {
        "assignments": sinkhorn(scores, valid, 0.05, 3),
        "loss": loss.detach(),
        # an engine averages the gradients of the ranks
        "pairs": pairs.grad / world,
        "prototypes": gather(prototype_grad.unsqueeze(0)).mean(dim=0),
        "usage": bank.usage,
        "last_used": bank.last_used,
        "queue": queue.state_dict(),
        "reestimated": reestimate(drifted, points, seed=5),
        "reseeded": reseed(drifted, bank.usage, torch.arange(COUNT) % 2 == 0, seed=5, step=6),
        "from first": from_first(torch.arange(3) + number),
    }


def run(number: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=world)
    found = measure(number, world)
    dist.barrier()
    dist.destroy_process_group()
    torch.save(found, Path(folder) / f"{number}.pt")


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank of a world of 2, and of 4, found."""
    world, folder = request.param, tmp_path_factory.mktemp("ranks")
    spawn(run, (world, str(folder)), nprocs=world)
    assert not mp.active_children()
    return [torch.load(folder / f"{number}.pt") for number in range(world)]


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """The same in one process."""
    return measure(0, 1)


@pytest.mark.parametrize("name", ["assignments", "loss", "pairs"])
def test_pairs_are_assigned_and_pay_as_in_one_process(
    ranks: list[dict[str, Any]], alone: dict[str, Any], name: str
) -> None:
    ours = torch.cat([found[name] for found in ranks], dim=0 if name == "loss" else 1)
    torch.testing.assert_close(ours, alone[name], rtol=0, atol=1e-13)
    assert alone[name].any()


def test_prototypes_get_the_gradient_of_one_process(ranks: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    assert alone["prototypes"].abs().min() > 1e-4
    for found in ranks:
        torch.testing.assert_close(found["prototypes"], alone["prototypes"], rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", ["usage", "last_used", "reestimated", "reseeded", "from first"])
def test_the_bank_has_the_same_bits_on_every_rank_and_in_one_process(
    ranks: list[dict[str, Any]], alone: dict[str, Any], name: str
) -> None:
    assert alone[name].any()
    for found in ranks:
        assert torch.equal(found[name], alone[name])


def test_the_queue_has_the_same_bits_on_every_rank_and_in_one_process(
    ranks: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    assert alone["queue"]["filled"] == 11
    assert alone["queue"]["head"] == 15 % 11
    for found in ranks:
        for name, tensor in alone["queue"].items():
            assert torch.equal(found["queue"][name], tensor), name
