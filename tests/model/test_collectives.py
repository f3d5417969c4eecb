"""What ranks exchange, in real processes over gloo: one spawn a world size holds all checks."""

import multiprocessing as mp
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn
from torch.nn.functional import normalize

from model.collectives import average, gather, rank, world_size
from model.group_norm import GroupBatchNorm
from model.losses.hinge import hinge_loss
from model.losses.tiles import Keys

LOCAL, WIDTH, GROUP = 4, 6, 2
IDS = torch.tensor([0, 1, 1, 3, 4, 0, 6, 7, 1, 9, 10, 11])  # the same images on several ranks


def pairs(world: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The global batch: images, captions, ids."""
    generator = torch.Generator().manual_seed(3)
    image, caption = (torch.randn(world * LOCAL, WIDTH, dtype=torch.float64, generator=generator) for _ in range(2))
    return image, caption, IDS[: world * LOCAL]


def both_directions(image: torch.Tensor, caption: torch.Tensor, ids: torch.Tensor, hardest: bool) -> torch.Tensor:
    """The loss of this rank's pairs among those of all ranks."""
    image, caption = normalize(image, dim=1), normalize(caption, dim=1)
    all_images, all_captions = gather(image), gather(caption)
    all_ids = gather(ids)
    images, captions = (
        Keys(rows, all_ids, torch.ones_like(all_ids, dtype=torch.bool)) for rows in (all_images, all_captions)
    )
    losses = hinge_loss(image, ids, caption, captions, 0.2, hardest) + hinge_loss(
        caption, ids, image, images, 0.2, hardest
    )
    return losses.mean()


def norm_statistics(x: torch.Tensor) -> torch.Tensor:
    norm = GroupBatchNorm(WIDTH, GROUP).double()
    for _ in range(2):
        norm(x.unsqueeze(1))
    return torch.stack([norm.running_mean, norm.running_var])


def measure(number: int, world: int, folder: str) -> None:
    """One rank's part; what it found goes to a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=world)
    image, caption, ids = pairs(world)
    own = slice(number * LOCAL, (number + 1) * LOCAL)
    found = {
        "place": (rank(), world_size()),
        "floats": gather(torch.full((2, 3), float(number))),
        "integers": gather(torch.tensor([number, 10 * number])),
        "uncontiguous": gather(torch.arange(6.0).view(2, 3).T + 100 * number),
        "average": average(torch.tensor([1.0, 10.0], requires_grad=True) * number),
        "statistics": norm_statistics(image[own]),
    }
    weight = torch.arange(world * 2.0).unsqueeze(1) + 100 * number
    rows = torch.ones(2, 1, requires_grad=True)
    (gather(rows) * weight).sum().backward()
    found["summed gradient"] = rows.grad
    for hardest in (True, False):
        parts = [part[own].clone().requires_grad_() for part in (image, caption)]
        loss = both_directions(*parts, ids[own], hardest)
        loss.backward()
        found[f"loss {hardest}"] = average(loss)
        # an engine averages the gradients of the ranks
        found[f"gradient {hardest}"] = torch.cat([part.grad / world for part in parts], dim=1)
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


def test_every_rank_knows_its_place(ranks: list[dict]) -> None:
    assert [found["place"] for found in ranks] == [(number, len(ranks)) for number in range(len(ranks))]


def test_gather_gives_all_rows_in_the_order_of_the_ranks(ranks: list[dict]) -> None:
    numbers = range(len(ranks))
    for found in ranks:
        assert torch.equal(found["floats"], torch.cat([torch.full((2, 3), float(n)) for n in numbers]))
        assert found["integers"].tolist() == [value for n in numbers for value in (n, 10 * n)]
        columns = torch.arange(6.0).view(2, 3).T
        assert torch.equal(found["uncontiguous"], torch.cat([columns + 100 * n for n in numbers]))


def test_gradient_of_gather_is_summed_over_what_all_ranks_did_with_the_rows(ranks: list[dict]) -> None:
    world = len(ranks)
    for number, found in enumerate(ranks):
        expected = [[sum(2.0 * number + row + 100 * other for other in range(world))] for row in range(2)]
        assert found["summed gradient"].tolist() == expected


def test_average_is_the_mean_over_the_ranks_without_gradient(ranks: list[dict]) -> None:
    mean = sum(range(len(ranks))) / len(ranks)
    for found in ranks:
        torch.testing.assert_close(found["average"], torch.tensor([mean, 10 * mean]))
        assert not found["average"].requires_grad


@pytest.mark.parametrize("hardest", [True, False], ids=["hardest", "all"])
def test_loss_and_gradient_over_all_ranks_are_those_of_one_process(ranks: list[dict], hardest: bool) -> None:
    image, caption, ids = pairs(len(ranks))
    image.requires_grad_()
    caption.requires_grad_()
    loss = both_directions(image, caption, ids, hardest)
    loss.backward()
    assert image.grad is not None
    assert caption.grad is not None
    expected = torch.cat([image.grad, caption.grad], dim=1)
    for found in ranks:
        torch.testing.assert_close(found[f"loss {hardest}"], loss.detach(), rtol=0, atol=1e-14)
    ours = torch.cat([found[f"gradient {hardest}"] for found in ranks])
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-14)


def test_running_statistics_are_those_of_one_process_on_every_rank(ranks: list[dict]) -> None:
    expected = norm_statistics(pairs(len(ranks))[0])
    for found in ranks:
        torch.testing.assert_close(found["statistics"], expected, rtol=0, atol=1e-14)


def test_in_one_process_they_are_identities() -> None:
    rows = torch.ones(3, 2, requires_grad=True)
    assert (rank(), world_size()) == (0, 1)
    assert gather(rows) is rows
    assert torch.equal(average(rows), rows)
    assert not average(rows).requires_grad
