"""Memory and time of a step at several micro-batches: `gradient_caching.py [--batch 128] [--framework aahr]`.

One process with DeepSpeed, from random weights, on random pictures; every term is on and the queue is full. Each
size runs in a process of its own, two steps: the second is timed, the peak of resident memory is that of both, less
what the process held before.
"""

import argparse
import subprocess
import sys
import time
from functools import partial

import torch
from resident import resident

import model  # noqa: F401  (lets torchvision import)
from model.caption_tokenizer import build_caption_tokenizer
from model.towers.open_clip import tower_widths
from trainer.config import Recipe
from trainer.distributed import World, leave, start
from trainer.engine import build_encoders, build_framework, initialize, seed_step
from trainer.gradient_cache import cached_gradients

CAPTION = "two dogs run over the wet grass behind a red ball that a man in a blue coat has thrown"


def recipe_of(options: argparse.Namespace) -> Recipe:
    group = options.batch // max(options.parts)
    at_once = {"start_step": 0}
    return Recipe.model_validate(
        {
            "data": {"global_batch_size": options.batch},
            "model": {
                "framework": options.framework,
                "architecture": options.architecture,
                "embed_dim": 256,
                "norm_group": group,
            },
            "loss": {
                **dict.fromkeys(("prototypes", "relations", "regulariser", "momentum_contrast"), at_once),
                "queue": {"size": 4096},
            },
            "engine": {"zero_stage": 0},
        }
    )


def measure(options: argparse.Namespace, parts: int) -> None:
    """Print MiB above what was held before, and seconds."""
    recipe, device = recipe_of(options), torch.device("cpu")
    start(World(), device)
    framework = build_framework(build_encoders(recipe.model, 0), recipe, 1, 100)
    engine = initialize(framework, recipe, World(), device)
    engine.train()
    if framework.queue is not None:
        framework.queue.filled.fill_(framework.queue.size)
    side = tower_widths(options.architecture).image_size
    inputs = (
        torch.randint(256, (options.batch, side, side, 3), dtype=torch.uint8),
        None,
        None,
        build_caption_tokenizer(recipe.model)([f"{CAPTION} {number}" for number in range(options.batch)]),
        torch.arange(options.batch),
        torch.ones(options.batch, dtype=torch.bool),
    )
    held, taken = resident("VmRSS"), 0.0
    for step in range(2):
        begin = time.perf_counter()
        cached_gradients(engine, framework, inputs, step, options.batch // parts, partial(seed_step, 0, step, 0))
        taken = time.perf_counter() - begin
        engine.step()
        framework.advance(step)
    print((resident("VmHWM") - held) / 2**20, taken)
    leave()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="itm-small")
    parser.add_argument("--framework", default="aahr")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--parts", type=int, nargs="+", default=[1, 2, 4, 8], help="micro-batches in a batch")
    parser.add_argument("--alone", type=int, help="measure this number in this process")
    options = parser.parse_args()
    if options.alone:
        measure(options, options.alone)
        return
    print(f"{'micro-batch':>11}{'MiB':>8}{'seconds':>9}")
    for parts in options.parts:
        command = [sys.executable, *sys.argv, "--alone", str(parts)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        mib, seconds = map(float, done.stdout.split())
        print(f"{options.batch // parts:>11}{mib:>8.0f}{seconds:>9.2f}", flush=True)


if __name__ == "__main__":
    main()
