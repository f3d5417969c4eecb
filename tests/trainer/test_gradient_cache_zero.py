"""Cached gradients inside real DeepSpeed engines on two processes, against the plain step of one without any."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from tests.trainer.gradient_cases import METHODS, ROWS, STEPS, batch, framework_of, recipe_of, write_concepts
from tests.trainer.moments import whole_moments
from trainer.deepspeed_setup import prepare_deepspeed
from trainer.distributed import World, free_port
from trainer.engine import initialize, seed_step, set_learning_rate
from trainer.gradient_cache import cached_gradients

pytestmark = pytest.mark.slow

WORLD = 2
ENGINES: dict[str, dict[str, Any]] = {
    **{f"ZeRO-{stage}": {"zero_stage": stage} for stage in range(4)},
    **{f"ZeRO-{stage}, offloaded": {"zero_stage": stage, "offload_optimizer": "cpu"} for stage in (1, 2)},
    "ZeRO-3, offloaded": {"zero_stage": 3, "offload_optimizer": "cpu", "offload_parameters": "cpu"},
}
CASES = [
    (method, engine) for method in METHODS for engine in ENGINES if method == "aahr+amsps" or "," not in engine
]
SHARE = ROWS // WORLD
SIZES = (SHARE, SHARE // 2, SHARE // 4, SHARE // 2)
"""Of the micro-batches, step by step."""
Found = dict[str, torch.Tensor]


def expected_of(method: str, folder: Path) -> Found:
    """All steps over the global batch in one process. No weight changes; AdamW's mean is of the gradients alone."""
    recipe = recipe_of(method, folder / "concepts.json")
    framework, decay = framework_of(recipe), recipe.optimizer.betas[0]
    trained = {name: one for name, one in framework.named_parameters() if one.requires_grad}
    means, found = {name: torch.zeros_like(one) for name, one in trained.items()}, {}
    for step in range(STEPS):
        losses = framework(*batch(step, METHODS[method]), step)
        framework.zero_grad()
        losses["loss"].backward()
        framework.advance(step)
        for name, one in trained.items():
            if one.grad is not None:
                means[name] = decay * means[name] + (1 - decay) * one.grad
        found |= {f"loss {step} {name}": value.detach() for name, value in losses.items()}
    return found | means | dict(framework.named_buffers())


def found_of(method: str, kind: str, folder: Path, rank: int) -> Found:
    recipe = recipe_of(method, folder / "concepts.json", **ENGINES[kind])
    framework, found = framework_of(recipe), {}
    engine = initialize(framework, recipe, World(rank, WORLD, rank), torch.device("cpu"))
    engine.train()
    set_learning_rate(engine, 0.0)
    own = slice(rank * SHARE, (rank + 1) * SHARE)
    for step, size in enumerate(SIZES):
        inputs = tuple(one if one is None else one[own] for one in batch(step, METHODS[method]))
        losses = cached_gradients(engine, framework, inputs, step, size, partial(seed_step, 0, step, rank))
        engine.step()
        assert engine.was_step_applied()
        framework.advance(step)
        for name, value in losses.items():
            mean = value.clone()
            dist.all_reduce(mean)
            found[f"loss {step} {name}"] = mean / WORLD
    found |= whole_moments(engine, "exp_avg")
    engine.destroy()
    return found | {name: one.clone() for name, one in framework.named_buffers()}


def measure(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": WORLD, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    prepare_deepspeed("gloo")
    torch.save({case: found_of(*case, folder, rank) for case in CASES}, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cached")
    write_concepts(folder / "concepts.json")
    spawn(measure, (free_port(), folder), nprocs=WORLD)
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_at_any_stage_and_micro_batch_they_are_those_of_the_plain_step(folder: Path, method: str) -> None:
    expected = expected_of(method, folder)
    ranks = [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]
    for found, kind in [(rank[case], case[1]) for rank in ranks for case in CASES if case[0] == method]:
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(
                found[name], tensor, rtol=1e-5, atol=3e-6, msg=lambda m, n=f"{kind}, {name}": f"{n}: {m}"
            )
