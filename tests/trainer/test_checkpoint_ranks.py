"""Checkpoints of real DeepSpeed engines on two ranks: every ZeRO stage into every other, and a failing rank."""

import os
import resource
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.multiprocessing.spawn import spawn

from tests.trainer.saving import progress
from tests.trainer.test_memory_zero import ROWS, WORLD, engine_of, model_and_data
from trainer.checkpoint import WEIGHTS, check_hashes
from trainer.checkpoint_folder import list_checkpoints
from trainer.checkpoint_load import load_optimizer, load_weights
from trainer.checkpoint_writer import CheckpointWriter
from trainer.config import Recipe
from trainer.deepspeed_setup import prepare_deepspeed
from trainer.distributed import free_port
from trainer.errors import RunError
from trainer.lease import Lease
from trainer.partitions import MOMENTS

STAGES = (0, 1, 2, 3)


def train(engine: Any, rank: int) -> None:
    half = ROWS // WORLD
    _, data, _ = model_and_data()
    for x in data[:2]:
        engine.backward(engine(x[rank * half : (rank + 1) * half]))
        engine.step()


def save(engine: Any, run: Path, rank: int, steps: tuple[int, ...] = (2,), limited: int | None = None) -> str:
    """What went wrong, if anything. From the second step on, files of rank `limited` may not grow."""
    with Lease(run) if rank == 0 else nullcontext() as lease:
        try:
            with CheckpointWriter(run / "checkpoints", engine, Recipe(), lease, lambda _text: None) as writer:
                for step in steps:
                    writer.save(progress(step))
                    writer.close()
                    if rank == limited:
                        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        except RunError as error:
            return str(error)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return ""


def ranks(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": WORLD, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    prepare_deepspeed("gloo")
    for stage in STAGES:
        engine = engine_of(model_and_data()[0], {"zero_stage": stage})
        train(engine, rank)
        assert save(engine, Path(folder) / f"from-{stage}", rank) == ""
        engine.destroy()
    for stage in STAGES:
        for source in STAGES:
            (checkpoint,) = list_checkpoints(Path(folder) / f"from-{source}/checkpoints")
            model, _, _ = model_and_data()
            with torch.no_grad():
                for value in (*model.parameters(), *model.buffers()):
                    value.zero_()
            assert load_weights(model, checkpoint) == []
            engine = engine_of(model, {"zero_stage": stage})
            load_optimizer(engine, checkpoint)
            said = save(engine, Path(folder) / f"{source}-to-{stage}", rank)
            assert said == "", (source, stage, said)
            if stage == source:
                told = save(engine, Path(folder) / f"failing-{stage}", rank, steps=(1, 2), limited=1)
                (Path(folder) / f"told-{stage}-{rank}").write_text(told)
            engine.destroy()
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    spawn(ranks, (free_port(), str(folder)), nprocs=WORLD)
    return folder


def content(run: Path) -> dict[str, torch.Tensor]:
    """All tensors of a run's only checkpoint, the moments put together from their spans."""
    (checkpoint,) = list_checkpoints(run / "checkpoints")
    check_hashes(checkpoint, checkpoint.files)
    assert sorted(path.name for path in checkpoint.path.iterdir()) == sorted({*checkpoint.files, "state.json"})
    tensors = load_file(checkpoint.path / WEIGHTS)
    spans: dict[str, list[tuple[int, torch.Tensor]]] = {}
    for rank in range(WORLD):
        part = load_file(checkpoint.path / f"optimizer-{rank:05d}-of-{WORLD:05d}.safetensors")
        for key, span in part.items():
            name, _, start = key.rpartition("@")
            spans.setdefault(name, []).append((int(start), span))
    for name, pieces in spans.items():
        end = 0
        for start, span in sorted(pieces, key=lambda piece: piece[0]):
            assert start == end, f"{name}: spans overlap or leave a gap"
            end += len(span)
        tensors[name] = torch.cat([span for _, span in sorted(pieces, key=lambda piece: piece[0])])
    return tensors


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_saves_the_whole_model_and_its_moments(folder: Path, stage: int) -> None:
    model, _, _ = model_and_data()
    saved, first = content(folder / f"from-{stage}"), content(folder / "from-0")
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert saved.keys() == model.state_dict().keys() | {f"{n}/{moment}" for n in trained for moment in MOMENTS}
    for name, value in model.state_dict().items():
        assert saved[name].shape == value.shape
        assert saved[name].dtype == value.dtype
        torch.testing.assert_close(saved[name], first[name], rtol=1e-4, atol=1e-5)
    for name, parameter in trained.items():
        assert len(saved[f"{name}/exp_avg"]) == parameter.numel()
        assert saved[f"{name}/exp_avg_sq"].any()


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("source", STAGES)
def test_a_checkpoint_goes_through_any_stage_without_losing_a_bit(folder: Path, source: int, stage: int) -> None:
    before, after = content(folder / f"from-{source}"), content(folder / f"{source}-to-{stage}")
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name]), name


@pytest.mark.parametrize("stage", STAGES)
def test_a_rank_that_cannot_write_stops_all_with_one_line_and_costs_no_older_checkpoint(
    folder: Path, stage: int
) -> None:
    told = {(folder / f"told-{stage}-{rank}").read_text() for rank in range(WORLD)}
    assert len(told) == 1
    assert "step-00000002: cannot be written (File too large)" in told.pop()
    assert [path.name for path in (folder / f"failing-{stage}/checkpoints").iterdir()] == ["step-00000001"]
    assert content(folder / f"failing-{stage}").keys() == content(folder / f"from-{stage}").keys()
