"""Thirty steps of every term of both methods: any processes, any ZeRO stage, any workers, any micro-batch.

Each rank builds one run after another in its process, and what the loader gives is read once.
"""

import os
from copy import deepcopy
from itertools import islice, product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from shards.batch import Batch
from tests.end_to_end.conftest import WHOLE, whole_of
from trainer.distributed import World, free_port, leave, start
from trainer.guard import Guard
from trainer.loop import Trainer
from trainer.partitions import whole_weight
from trainer.plan import make_plan
from trainer.preemption import StopRequest
from trainer.quarantine import Quarantine
from trainer.recipe import load_recipe
from trainer.watchdog import Watchdog

pytestmark = pytest.mark.slow

STEPS, BATCH = 30, 16
WORLDS, STAGES, WORKERS = (1, 2, 4), (0, 1, 2, 3), (0, 2)
Found = dict[str, torch.Tensor]


def trainer_of(settings: tuple[str, ...], world: World, *more: str) -> Trainer:
    plan = make_plan(load_recipe(WHOLE, [*settings, *more]), world.size)
    return Trainer(plan, world, torch.device("cpu"), StopRequest(), None, [])


def found_of(trainer: Trainer, batches: list[Batch]) -> Found:
    """The losses of every step over all ranks, and what is kept at the end."""
    trainer.quarantine = Quarantine(trainer.plan.run_dir, 1.0, trainer.world)
    trainer.guard = Guard(trainer.plan, trainer.world, trainer.stop)
    trainer.watchdog = Watchdog(trainer.plan.run_dir, trainer.world.rank, None)
    trainer.engine.train()
    rows = []
    for batch in batches:
        losses, *_ = trainer._step(batch)
        trainer.step += 1
        rows.append(losses["loss"])
    curve = torch.stack(rows)
    dist.all_reduce(curve)
    queue, bank = trainer.framework.queue, trainer.framework.prototypes
    assert queue is not None
    assert bank is not None
    kept = {f"queue's {name}": one.clone() for name, one in queue.named_buffers()}
    kept |= {f"bank's {name}": one.clone() for name, one in bank.named_buffers()}
    kept["prototypes"] = whole_weight(trainer.engine, bank.bank.prototypes).clone()
    trainer.engine.destroy()
    return {"loss": curve / trainer.world.size, **kept}


def measure(rank: int, size: int, port: int, settings: tuple[str, ...], folder: Path) -> None:
    torch.set_num_threads(1)
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})
    world = World(rank, size, rank)
    start(world, torch.device("cpu"))
    batches = {}
    for workers in WORKERS:
        trainer = trainer_of(settings, world, f"data.workers={workers}")
        # copies: what a worker made does not last
        batches[workers] = [deepcopy(batch) for batch in islice(trainer.loader, STEPS)]
        trainer.engine.destroy()
    found: dict[Any, Any] = {"batches": batches}
    for stage, parts in product(STAGES, (1, 2)):
        micro = f"engine.micro_batch_size={BATCH // size // parts}"
        trainer = trainer_of(settings, world, f"engine.zero_stage={stage}", micro)
        found[stage, parts] = found_of(trainer, batches[WORKERS[(stage + parts) % 2]])
    torch.save(found, folder / f"{size}-{rank}.pt")
    dist.barrier()
    leave()


@pytest.fixture(scope="module")
def ranks(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], Any]:
    folder = tmp_path_factory.mktemp("grid")
    settings = (f"run.dir={folder / 'run'}", *whole_of(demo), "schedule.epochs=5", "data.val=null")
    settings += ("model.norm_group=2", "loss.relations.group=4")
    for size in WORLDS:
        spawn(measure, (size, free_port(), settings, folder), nprocs=size)
    places = [(size, rank) for size in WORLDS for rank in range(size)]
    return {place: torch.load(folder / f"{place[0]}-{place[1]}.pt", weights_only=False) for place in places}


def test_workers_change_no_bit_of_a_batch(ranks: dict[tuple[int, int], Any]) -> None:
    for found in ranks.values():
        first, second = (found["batches"][workers] for workers in WORKERS)
        assert len(first) == STEPS
        for one, other in zip(first, second, strict=True):
            for name in ("images", "text", "image_ids", "valid", "samples"):
                assert torch.equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("size", WORLDS)
def test_losses_queue_and_bank_are_the_same(ranks: dict[tuple[int, int], Any], size: int) -> None:
    expected = ranks[1, 0][0, 1]
    for stage, parts in product(STAGES, (1, 2)):
        first = ranks[size, 0][stage, parts]
        for rank in range(size):
            found = ranks[size, rank][stage, parts]
            assert found.keys() == expected.keys()
            for name, tensor in expected.items():
                place = f"{name}: {size} processes, rank {rank}, ZeRO-{stage}, {parts} micro-batches"
                assert torch.equal(found[name], first[name]), place
                # of embeddings, which are of length 1, and of shares
                atol = 0 if name == "loss" else 1e-5
                torch.testing.assert_close(
                    found[name], tensor, rtol=1e-5, atol=atol, msg=lambda m, p=place: f"{p}: {m}"
                )
