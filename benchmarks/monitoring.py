"""What monitoring costs a step: `monitoring.py [--steps 2000] [--wandb]`.

All that a run does for it, in one process on the CPU, around a step that does nothing: what every step pays,
and what a logged one pays, to metrics.jsonl, TensorBoard and, with --wandb, Weights & Biases offline. A share of
a step is that of a step of 100 ms with a row every 10 steps, the default.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import repeat
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist

import model  # noqa: F401  (lets torchvision import)
from shards.batch import Batch
from trainer.config import LogConfig, Recipe
from trainer.lease import Lease
from trainer.logs import RunLog
from trainer.meter import Meter
from trainer.trace import Tracer

TERMS = [f"term_{number}" for number in range(12)]


def seconds(work: Callable[[int], None], steps: int, rounds: int = 5) -> float:
    """Of one step: the median over the rounds."""
    taken = []
    for number in range(rounds):
        begin = time.perf_counter()
        for step in range(number * steps, (number + 1) * steps):
            work(step + 2)
        taken.append((time.perf_counter() - begin) / steps)
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--wandb", action="store_true")
    options = parser.parse_args()
    recipe = Recipe(log=LogConfig(wandb="offline" if options.wandb else None))
    numbers = torch.arange(128)
    images = torch.zeros(128, 224, 224, 3, dtype=torch.uint8)
    text = torch.zeros(128, 77, dtype=torch.int64)
    batches = repeat(Batch(images, None, None, text, numbers, numbers, numbers, numbers >= 0, [""] * 128))
    with TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        meter = Meter(recipe, torch.device("cpu"), 0, 0)
        tracer = Tracer(10**9, Path(folder), 0, torch.device("cpu"), arrive=lambda: None)
        with Lease(Path(folder) / "run") as lease, RunLog(lease, 10**9, 0, recipe) as log:

            def every(step: int) -> None:
                with tracer.around(step):
                    meter.waiting(batches)
                log.advance()

            def logged(step: int) -> None:
                log.metrics({"step": step, "loss": 1.0, **dict.fromkeys(TERMS, 0.5)} | meter.read(step), TERMS)

            begin = time.perf_counter()
            every(1)
            logged(1)
            first, plain, row = time.perf_counter() - begin, seconds(every, options.steps), seconds(logged, 50)
        dist.destroy_process_group()
    print(f"the first row, which counts the arithmetic of a step of ViT-B-32: {first:.2f} s, once a run")
    print(f"every step: {plain * 1e6:.1f} us; a logged step: {row * 1e3:.2f} ms more")
    print(f"of a step of 100 ms with a row every 10: {(plain + row / 10) / 0.1:.3%}")


if __name__ == "__main__":
    main()
