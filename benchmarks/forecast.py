"""How near `itm plan` comes to what is held: `forecast.py [--architecture ViT-B-32] [--batch 64] [--stages 0]`.

One process with DeepSpeed on the CPU, from random weights, on random pictures; every term is on. Each stage
runs in a process of its own, three steps. Two measures: `live`, the bytes of all tensors that are alive,
counted where torch makes them, from before the model is built; `resident`, the growth of the process's memory, in
which what was allocated and never touched does not count, so that it is compared without DeepSpeed's bucket, nearly
empty where the model is small. Predictions are without the allowance, whose parts a CPU does not have.
"""

import argparse
import json
import os
import subprocess
import sys
from functools import partial

import torch
from resident import resident

import model  # noqa: F401  (lets torchvision import)
from trainer.config import Recipe
from trainer.distributed import World, leave, start
from trainer.engine import build_encoders, build_framework, initialize, seed_step
from trainer.forecast.forecast import memory_of
from trainer.forecast.live_bytes import LiveBytes
from trainer.forecast.step import STAGES, inputs_of, measure_step
from trainer.gradient_cache import cached_gradients

LAST = 100


def recipe_of(options: argparse.Namespace, stage: int) -> Recipe:
    at_once = {"start_step": 0}
    quiet = {"dropout": 0.0}
    return Recipe.model_validate(
        {
            "data": {"global_batch_size": options.batch},
            "model": {
                "framework": options.framework,
                "architecture": options.architecture,
                "embed_dim": 256,
                "norm_group": options.batch // options.parts,
                "aahr": quiet,
            },
            "loss": {
                **dict.fromkeys(("prototypes", "regulariser", "momentum_contrast"), at_once),
                "relations": at_once | quiet | {"gcn_dropout": 0.0},
                "queue": {"size": 4096},
            },
            "engine": {"zero_stage": stage, "micro_batch_size": options.batch // options.parts},
        }
    )


def drawn(shapes: tuple[torch.Tensor | None, ...]) -> tuple[torch.Tensor | None, ...]:
    """A batch of such shapes, pairs unlike each other."""
    images, regions, mask, text, *_ = shapes
    assert text is not None
    assert images is not None
    pixels, words = torch.randint_like(images, 256), torch.randint_like(text, 1, 1000)
    words[:, -1] = 1000  # the largest ends a text
    return pixels, regions, mask, words, torch.arange(len(text)), torch.ones(len(text), dtype=torch.bool)


def measure(options: argparse.Namespace, stage: int, counts: bool) -> None:
    """Print the bytes at the fullest moment of three steps."""
    recipe, device = recipe_of(options, stage), torch.device("cpu")
    start(World(), device)
    before, live = resident("VmRSS"), LiveBytes()
    if counts:
        live.__enter__()
    framework = build_framework(build_encoders(recipe.model, 0), recipe, 1, LAST)
    engine = initialize(framework, recipe, World(), device)
    engine.train()
    for step in range(LAST - 3, LAST):
        inputs = drawn(inputs_of(recipe, framework.encoders.num_concepts).make(options.batch))
        cached_gradients(
            engine, framework, inputs, step, options.batch // options.parts, partial(seed_step, 0, step, 0)
        )
        engine.step()
        assert engine.was_step_applied(), "else there are no moments"
        framework.advance(step)
    print(json.dumps(max(live.before.both, live.after.both) if counts else resident("VmHWM") - before))
    leave()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="itm-small")
    parser.add_argument("--framework", default="aahr")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--parts", type=int, default=1, help="micro-batches in a batch")
    parser.add_argument("--stages", type=int, nargs="+", default=STAGES)
    parser.add_argument("--alone", nargs=2, help="measure this stage and kind in this process")
    options = parser.parse_args()
    if options.alone:
        measure(options, int(options.alone[0]), options.alone[1] == "live")
        return
    print("stage  predicted MB   live MB   error  resident MB   error")
    for stage in options.stages:
        recipe = recipe_of(options, stage)
        memory = memory_of(recipe, measure_step(recipe, 1, 1, LAST), 1, stage)
        predicted = memory.total - memory.gpu["allowance"] - memory.gpu["loss tiles"]
        found = []
        for kind in ("live", "resident"):
            command = [sys.executable, *sys.argv, "--alone", str(stage), kind]
            # freed memory goes back to the system at once, so that what is resident is what is alive
            environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
            found.append(float(done.stdout.splitlines()[-1]))
        errors = [predicted / one - 1 for one in found]
        print(
            f"{stage:>5}{predicted / 1e6:>14,.0f}{found[0] / 1e6:>10,.0f}{errors[0]:>8.1%}"
            f"{found[1] / 1e6:>13,.0f}{errors[1]:>8.1%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
