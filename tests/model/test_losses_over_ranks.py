"""The losses over pairs on several ranks are those of one process: gloo, one spawn a world size."""

import multiprocessing as mp
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn
from torch.nn.functional import normalize

from model.collectives import average, gather
from model.config import ContrastConfig
from model.losses.contrast import Contrast
from model.losses.hinge import distance_weighted_hinge, hinge_loss
from model.losses.info_nce import info_nce
from model.losses.keyed_noise import PairNoise
from model.losses.tiles import Keys
from tests.model.pairs import keys_of, unit_rows

PAIRS, WIDTH = 12, 6
IDS = torch.tensor([0, 1, 1, 3, 4, 0, 6, 7, 1, 9, 10, 11])  # the same images on several ranks
QUEUE = keys_of(unit_rows(9, WIDTH, 5), [0, 20, 1, 21, 7, 22, 23, 24, 25], [True] * 7 + [False] * 2)


def losses(image: torch.Tensor, caption: torch.Tensor, ids: torch.Tensor, first: int) -> dict[str, torch.Tensor]:
    """Each loss of this rank's pairs, whose first has the position `first`, among those of all ranks."""
    image, caption = normalize(image, dim=1), normalize(caption, dim=1)
    all_ids = gather(ids)
    valid = torch.ones_like(all_ids, dtype=torch.bool)
    images, captions = (Keys(gather(rows), all_ids, valid) for rows in (image, caption))
    noise = PairNoise(first + torch.arange(len(ids)), len(all_ids), seed=0, step=3)
    clip, siglip = (Contrast(kind, ContrastConfig()).double() for kind in ("clip", "siglip"))
    values = {
        "clip": clip(image, caption, ids, images, captions),
        "siglip": siglip(image, caption, ids, images, captions),
        "batch and queue": info_nce(image, ids, caption, [captions, QUEUE], 14.0),
        "hardest": hinge_loss(image, ids, caption, captions, 0.2, hardest=True),
        "all negatives": hinge_loss(caption, ids, image, images, 0.2, hardest=False),
        "distance-weighted": distance_weighted_hinge(image, ids, caption, captions, 1.0, noise, 1.9, WIDTH),
    }
    return {name: value.mean() for name, value in values.items()}


NAMES = ["clip", "siglip", "batch and queue", "hardest", "all negatives", "distance-weighted"]


def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    return 3 * unit_rows(PAIRS, WIDTH, 0), 2 * unit_rows(PAIRS, WIDTH, 1)


def measure(number: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=world)
    local = PAIRS // world
    own = slice(number * local, (number + 1) * local)
    found = {}
    for name in NAMES:
        parts = [part[own].clone().requires_grad_() for part in pairs()]
        loss = losses(*parts, IDS[own], own.start)[name]
        loss.backward()
        # an engine averages the gradients of the ranks
        found[name] = average(loss), torch.cat([part.grad / world for part in parts], dim=1)
    dist.barrier()
    dist.destroy_process_group()
    torch.save(found, Path(folder) / f"{number}.pt")


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What each rank of a world of 2, and of 3, found."""
    world, folder = request.param, tmp_path_factory.mktemp("ranks")
    spawn(measure, (world, str(folder)), nprocs=world)
    assert not mp.active_children()
    return [torch.load(folder / f"{number}.pt") for number in range(world)]


@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradient_over_all_ranks_are_those_of_one_process(ranks: list[dict], name: str) -> None:
    image, caption = (part.requires_grad_() for part in pairs())
    loss = losses(image, caption, IDS, 0)[name]
    loss.backward()
    assert loss > 0
    for found in ranks:
        torch.testing.assert_close(found[name][0], loss.detach(), rtol=1e-13, atol=1e-13)
    assert image.grad is not None
    assert caption.grad is not None
    ours = torch.cat([found[name][1] for found in ranks])
    torch.testing.assert_close(ours, torch.cat([image.grad, caption.grad], dim=1), rtol=1e-12, atol=1e-13)
