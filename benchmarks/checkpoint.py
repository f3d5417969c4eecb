"""How long a save holds training, in the background and when it is waited for: `checkpoint.py [--rounds 3]`.

A DeepSpeed engine around parameters of the shapes of open_clip's ViT-B-32, with AdamW; what a step computes is
next to nothing, so that a step beside a save shows what the save takes away. Both ways take turns in one run. The
disk is that of the folder for temporary files, or of --dir.
"""

import argparse
import os
import statistics
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn

import model  # noqa: F401  (lets torchvision import)
from shards.loader import Position
from trainer.checkpoint import Progress
from trainer.checkpoint_writer import CheckpointWriter
from trainer.config import Recipe
from trainer.deepspeed_setup import prepare_deepspeed
from trainer.distributed import free_port
from trainer.lease import Lease

STEPS = 2


class Parameters(nn.Module):
    """One parameter, which a step reads whole."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape or (1,)) / 100)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.weight.mean()


def build(architecture: str) -> nn.Sequential:
    import open_clip

    shapes = [parameter.shape for parameter in open_clip.create_model(architecture).parameters()]
    return nn.Sequential(*(Parameters(shape) for shape in shapes))


def engine_of(module: nn.Module, stage: int, world: int) -> Any:
    import deepspeed

    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=torch.optim.AdamW(module.parameters(), fused=True),
        config={
            "train_batch_size": world,
            "train_micro_batch_size_per_gpu": 1,
            "gradient_clipping": 0.0,
            "steps_per_print": 10**9,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        },
    )
    return engine


def train_step(engine: Any) -> float:
    begin = time.perf_counter()
    engine.backward(engine(torch.ones(1)).sum())
    engine.step()
    return time.perf_counter() - begin


def measure(rank: int, world: int, port: int, stage: int, options: argparse.Namespace, folder: str) -> None:
    torch.set_num_threads(1)
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})
    dist.init_process_group("gloo", rank=rank, world_size=world)
    prepare_deepspeed("gloo")
    module = build(options.architecture)
    bytes_saved = 12 * sum(parameter.numel() for parameter in module.parameters())
    engine = engine_of(module, stage, world)
    recipe = Recipe.model_validate({"checkpoint": {"keep_last": 1}})
    rows: list[list[float]] = []
    with Lease(Path(folder)) if rank == 0 else nullcontext() as lease:
        writer = CheckpointWriter(Path(folder) / "checkpoints", engine, recipe, lease, lambda _text: None)
        for number in range(options.rounds):
            undisturbed = statistics.median(train_step(engine) for _ in range(STEPS))
            dist.barrier()
            begin = time.perf_counter()
            writer.save(Progress(2 * number + 1, Position(), []))
            writer.close()
            waited = time.perf_counter() - begin
            train_step(engine)
            dist.barrier()
            begin = time.perf_counter()
            writer.save(Progress(2 * number + 2, Position(), []))
            held = time.perf_counter() - begin
            beside = statistics.median(train_step(engine) for _ in range(STEPS))
            writer.close()
            rows.append([waited, held, undisturbed, beside])
    slowest = torch.tensor(rows)
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    if rank == 0:
        report(stage, world, slowest, bytes_saved)
    dist.barrier()
    dist.destroy_process_group()


def report(stage: int, world: int, rows: torch.Tensor, bytes_saved: int) -> None:
    waited, held, undisturbed, beside = rows.median(dim=0).values.tolist()
    ratios = rows[:, 1] / rows[:, 0]
    print(
        f"ZeRO-{stage}, {world} process{'es' * (world > 1)}, {bytes_saved / 1e9:.2f} GB: waited for "
        f"{waited:.2f} s, in the background {held:.3f} s: {ratios.median():.3f} "
        f"({ratios.min():.3f} .. {ratios.max():.3f}); a step {undisturbed:.2f} s, beside a save {beside:.2f} s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="ViT-B-32")
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 2, 3])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", help="where to write")
    options = parser.parse_args()
    for world in options.processes:
        for stage in options.stages:
            with tempfile.TemporaryDirectory(dir=options.dir) as folder:
                spawn(measure, (world, free_port(), stage, options, folder), nprocs=world)


if __name__ == "__main__":
    main()
