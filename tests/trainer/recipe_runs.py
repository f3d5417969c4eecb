"""Trains recipes one after the other: `python -m tests.trainer.recipe_runs JOBS`.

JOBS is a JSON list of argument lists, as `itm train` takes them. Each has a process of its own, as DeepSpeed can be
started once in a process only, but a fork of this one: imports would else be most of the time.
"""

import json
import sys
from multiprocessing import get_context
from pathlib import Path

from trainer.distributed import World
from trainer.loop import train
from trainer.plan import make_plan
from trainer.preemption import StopRequest
from trainer.recipe import load_recipe


def run(name: str, *overrides: str) -> None:
    train(make_plan(load_recipe(Path(name), overrides), 1), World(), StopRequest())


def main() -> None:
    import deepspeed  # noqa: F401
    import transformers.models.bert.modeling_bert  # noqa: F401

    for job in json.loads(Path(sys.argv[1]).read_text()):
        process = get_context("fork").Process(target=run, args=job)
        process.start()
        process.join()
        if process.exitcode:
            sys.exit(f"{job} ended with {process.exitcode}")


if __name__ == "__main__":
    main()
