"""Prototype contrast, queue and bank in real processes over gloo: the same at any world size.

The queue also in parts, one a rank, which none of the world sizes divides, and with more ranks than slots.
"""

import multiprocessing as mp
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn
from torch.nn.functional import normalize

from model.collectives import average, from_first, gather, gather_packed
from model.config import AhrlConfig, PrototypeConfig
from model.losses.ahrl import ahrl
from model.losses.info_nce import info_nce
from model.losses.pairs import Memory, Pairs
from model.memory.clustering import reestimate, reseed
from model.memory.queue import MomentumQueue
from model.step import Step, View
from model.terms.prototypes import PrototypeTerm

GLOBAL, WIDTH, COUNT = 8, 6, 5
VALID = torch.tensor([True, True, False, True, True, True, False, False])  # with 4 ranks the last has none


def rows(seed: int, count: int = GLOBAL) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(count, WIDTH, dtype=torch.float64, generator=generator), dim=1)


def prototypes_of(update: Literal["gradient", "average"], own: slice) -> dict[str, torch.Tensor]:
    """The prototype term and its bank after one step."""
    config = PrototypeConfig(update=update, count=COUNT, sinkhorn_epsilon=0.05, decay=0.8)
    bank = (term := PrototypeTerm(config, WIDTH).double()).bank
    with torch.no_grad():
        bank.prototypes.copy_(2 * rows(2, COUNT))
    pairs = torch.stack([rows(0), rows(1)])[:, own].clone().requires_grad_()
    ids = torch.arange(GLOBAL)[own]
    *sides, all_ids, valid = gather_packed(*pairs, ids, VALID[own])
    view = View(Pairs(*pairs, ids, VALID[own]), Pairs(*sides, all_ids, valid), None)
    encoded: Any = None  # of no interest to this term
    weight = VALID[own] * (GLOBAL / VALID.sum())
    step = Step(4, 0, ids, weight.double(), encoded, encoded, [view], None, None)
    loss = term(step)["prototypes"]
    loss.backward()
    term.advance(4)
    assert pairs.grad is not None
    found = {"loss": average(loss), "pairs": average_of_ranks(pairs.grad), "usage": bank.usage}
    if isinstance(bank.prototypes, torch.nn.Parameter):
        assert bank.prototypes.grad is not None
        return found | {"prototypes": average(bank.prototypes.grad), "last_used": bank.last_used}
    return found | {"averaged": bank.prototypes}


def average_of_ranks(grad: torch.Tensor) -> torch.Tensor:
    """An engine averages the gradients of the ranks."""
    return grad * len(grad[0]) / GLOBAL


def queue_of(own: slice, size: int, sharded: bool) -> MomentumQueue:
    queue = MomentumQueue(size, WIDTH, sharded)
    for step in range(3):
        images, texts = rows(10 + step)[own].float(), rows(20 + step)[own].float()
        positions = torch.arange(GLOBAL)[own]
        queue.enter(*gather_packed(images, texts, positions * 3, positions, VALID[own]), step)
    return queue


def losses_against(queue: MomentumQueue, own: slice) -> dict[str, torch.Tensor]:
    """All that reads a queue."""
    (slots,) = queue.kinds(1)
    images, texts = (rows(seed)[own].float().requires_grad_() for seed in (0, 1))
    key_images, key_texts = rows(5)[own].float(), rows(6)[own].float()
    ids, positions = 3 * torch.arange(GLOBAL)[own], torch.arange(GLOBAL)[own]
    contrast = info_nce(images, ids, key_texts, [slots.text_keys], 10.0)
    contrast = contrast + info_nce(texts, ids, key_images, [slots.image_keys], 10.0)
    *sides, all_ids, valid = gather_packed(images, texts, key_images, key_texts, ids, VALID[own])
    memory = Memory(Pairs(key_images, key_texts, ids, VALID[own]), Pairs(*sides[2:], all_ids, valid), slots)
    config = AhrlConfig(candidates=4, candidate_margin=0.3)
    pairs, batch = Pairs(images, texts, ids, VALID[own]), Pairs(*sides[:2], all_ids, valid)
    mined = ahrl(pairs, batch, positions, memory, torch.tensor(0.3), config, seed=3, step=2)
    (contrast.mean() + mined.loss.mean()).backward()
    assert images.grad is not None
    assert texts.grad is not None
    levels = torch.stack([contrast.detach(), mined.hard, mined.candidate, mined.pair, mined.mining, mined.penalty])
    return {
        "levels": gather(levels.T.contiguous()),
        "soft positives": gather(mined.soft_positives),
        "gradient": gather(average_of_ranks(torch.stack([images.grad, texts.grad])).transpose(0, 1)),
        "agreement": average(mined.agreement_counts.double()) * (GLOBAL // len(ids)),
    }


def measure(number: int, world: int) -> dict[str, Any]:
    """One rank's part of everything that talks to the others."""
    local = GLOBAL // world
    own = slice(number * local, (number + 1) * local)
    learned, averaged = (prototypes_of(update, own) for update in ("gradient", "average"))
    found: dict[str, Any] = learned | {"averaged": averaged["averaged"]}
    points = rows(3, 40) if number == 0 else None  # nobody but rank 0 reads them
    drifted = 2 * rows(2, COUNT) + 1e-9 * number
    dead = torch.arange(COUNT) % 2 == 0
    found |= {
        "reestimated": reestimate(drifted, points, seed=5),
        "reseeded": reseed(drifted, learned["usage"], dead, seed=5, step=6),
        "from first": from_first(torch.arange(3) + number),
    }
    for size in (11, 3):  # eleven slots are wrapped around; three are fewer than four ranks and one batch
        for sharded in (False, True):
            queue = queue_of(own, size, sharded) if size > GLOBAL else MomentumQueue(size, WIDTH, sharded)
            if size < GLOBAL:
                pair = [rows(7, 2).float(), rows(8, 2).float(), torch.arange(2), torch.arange(2)]
                queue.enter(*pair, torch.tensor([True, True]), 0)
            whole, again = queue.whole(), MomentumQueue(size, WIDTH, sharded)
            sent: list[Any] = [whole]
            if world > 1:
                dist.broadcast_object_list(sent)
            again.load_state_dict(again.own_part(sent[0]))
            found[f"queue {size} {sharded}"] = {
                "held": torch.tensor(len(queue.images)),
                "whole": sent[0],
                "points": queue.points(WIDTH - 1),
                "resumed": all(torch.equal(b, dict(again.named_buffers())[n]) for n, b in queue.named_buffers()),
                **losses_against(queue, own),
            }
    return found


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


def test_pairs_pay_as_in_one_process(ranks: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    assert alone["pairs"].any()
    ours = torch.cat([found["pairs"] for found in ranks], dim=1)
    torch.testing.assert_close(ours, alone["pairs"], rtol=0, atol=1e-13)
    for found in ranks:
        torch.testing.assert_close(found["loss"], alone["loss"], rtol=0, atol=1e-13)


def test_prototypes_get_the_gradient_of_one_process(ranks: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    assert alone["prototypes"].abs().min() > 1e-4
    for found in ranks:
        torch.testing.assert_close(found["prototypes"], alone["prototypes"], rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", ["usage", "last_used", "averaged", "reestimated", "reseeded", "from first"])
def test_the_bank_has_the_same_bits_on_every_rank_and_in_one_process(
    ranks: list[dict[str, Any]], alone: dict[str, Any], name: str
) -> None:
    assert alone[name].any()
    for found in ranks:
        assert torch.equal(found[name], alone[name])


@pytest.mark.parametrize("size", [11, 3])
@pytest.mark.parametrize("sharded", [False, True])
def test_the_queue_has_the_same_bits_in_one_process_and_whole_or_in_parts(
    ranks: list[dict[str, Any]], alone: dict[str, Any], size: int, sharded: bool
) -> None:
    expected = alone[f"queue {size} False"]
    if size == 11:
        assert expected["whole"]["filled"] == 11
        assert expected["whole"]["head"] == 15 % 11
    for found in ranks:
        queue = found[f"queue {size} {sharded}"]
        assert queue["resumed"]
        assert queue["whole"].keys() == expected["whole"].keys()
        for name, tensor in expected["whole"].items():
            assert torch.equal(queue["whole"][name], tensor), name
    assert torch.equal(ranks[0][f"queue {size} {sharded}"]["points"], expected["points"])
    held = [int(found[f"queue {size} {sharded}"]["held"]) for found in ranks]
    assert sum(held) == (size if sharded else size * len(ranks))
    assert max(held) == (-(-size // len(ranks)) if sharded else size)


@pytest.mark.parametrize("size", [11, 3])
@pytest.mark.parametrize("sharded", [False, True])
def test_losses_against_the_queue_are_those_of_one_process(
    ranks: list[dict[str, Any]], alone: dict[str, Any], size: int, sharded: bool
) -> None:
    expected = alone[f"queue {size} False"]
    if size == 11:
        assert (expected["levels"] > 0).any(dim=0).all(), "each of the levels counts for some pair"
        assert expected["soft positives"].any()
    for found in ranks:
        queue = found[f"queue {size} {sharded}"]
        for name in ("levels", "soft positives", "agreement", "gradient"):
            torch.testing.assert_close(
                queue[name], expected[name], rtol=1e-5, atol=1e-6, msg=lambda m, n=name: n + m
            )
