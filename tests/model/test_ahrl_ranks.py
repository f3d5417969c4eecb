"""AHRL and its running quantile over one, two and three processes: one spawn a world size holds all checks."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn
from torch.nn.functional import normalize

from model.collectives import average, gather
from model.config import AhrlConfig
from model.losses.ahrl import ahrl
from model.losses.mining import Memory, Pairs
from model.losses.running_quantile import RunningQuantile

PAIRS, QUEUE, WIDTH, STEPS = 12, 30, 5, 3
IDS = torch.tensor([0, 1, 1, 3, 4, 0, 6, 7, 1, 9, 10, 11])  # the same images on several ranks
VALID = torch.arange(PAIRS) < 11
CONFIG = AhrlConfig(candidates=7, quantile=0.9, quantile_decay=0.5, candidate_margin=0.1)


def rows(number: int, seed: int) -> torch.Tensor:
    return torch.randn(number, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def train(number: int, world: int) -> dict[str, torch.Tensor]:
    """Some steps of one rank's share of the pairs: what the last one gives."""
    own = slice(number * PAIRS // world, (number + 1) * PAIRS // world)
    images, texts = rows(PAIRS, 0)[own].requires_grad_(), rows(PAIRS, 1)[own].requires_grad_()
    key_images, key_texts = normalize(rows(PAIRS, 2), dim=1), normalize(rows(PAIRS, 3), dim=1)
    queue = [normalize(rows(QUEUE, seed), dim=1) for seed in (4, 5)]
    memory = Memory(
        Pairs(key_images[own], key_texts[own], IDS[own], VALID[own]),
        Pairs(gather(key_images[own]), gather(key_texts[own]), gather(IDS[own]), gather(VALID[own])),
        Pairs(*queue, torch.arange(QUEUE) % 15, torch.arange(QUEUE) < 28),
    )
    running = RunningQuantile(CONFIG.quantile, CONFIG.quantile_decay)
    for step in range(STEPS):
        mine = Pairs(normalize(images, dim=1), normalize(texts, dim=1), IDS[own], VALID[own])
        everyone = Pairs(gather(mine.images), gather(mine.texts), memory.batch.ids, memory.batch.valid)
        positions = torch.arange(PAIRS)[own]
        result = ahrl(mine, everyone, positions, memory, running.value, CONFIG, seed=3, step=step)
        running.update(average(result.agreement_counts.double()))
    # an engine averages the gradients of the ranks
    loss = result.loss.mean()
    grads = torch.autograd.grad(loss / world, (images, texts))
    return {
        "loss": average(loss),
        "gradient": torch.cat(grads, dim=1),
        "soft positives": gather(result.soft_positives),
        "histogram": running.histogram,
        "threshold": running.value,
    }


def measure(number: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=world)
    found = train(number, world)
    dist.barrier()
    dist.destroy_process_group()
    torch.save(found, Path(folder) / f"{number}.pt")


@pytest.mark.parametrize("world", [2, 3])
def test_loss_gradient_and_quantile_are_those_of_one_process(world: int, tmp_path: Path) -> None:
    expected = train(0, 1)
    assert 0 < expected["soft positives"].sum() < PAIRS * QUEUE
    spawn(measure, (world, str(tmp_path)), nprocs=world)
    ranks = [torch.load(tmp_path / f"{number}.pt") for number in range(world)]
    for found in ranks:
        torch.testing.assert_close(found["loss"], expected["loss"], rtol=0, atol=1e-14)
        assert torch.equal(found["soft positives"], expected["soft positives"])
        torch.testing.assert_close(found["histogram"], expected["histogram"], rtol=1e-6, atol=0)
        assert torch.equal(found["histogram"], ranks[0]["histogram"])
        torch.testing.assert_close(found["threshold"], expected["threshold"])
    gradient = torch.cat([found["gradient"] for found in ranks])
    torch.testing.assert_close(gradient, expected["gradient"], rtol=0, atol=1e-14)
