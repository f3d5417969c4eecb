"""`itm`, but each rank writes down which samples it takes in each step: a program for torchrun.

`SAMPLES` names the folder; a line is `{"start", "step", "samples", "valid"}`, `start` the step at which this call
of the program began.
"""

import json
import os
from pathlib import Path
from typing import Any

from shards.batch import Batch
from trainer.cli import app
from trainer.loop import Trainer

_step = Trainer._step
_starts: dict[int, int] = {}


def _recording(trainer: Trainer, batch: Batch) -> Any:
    start = _starts.setdefault(id(trainer), trainer.step)
    row = {
        "start": start,
        "step": trainer.step,
        "samples": batch.samples.tolist(),
        "valid": batch.valid.tolist(),
    }
    with (Path(os.environ["SAMPLES"]) / f"{os.getpid()}.jsonl").open("a") as stream:
        stream.write(json.dumps(row) + "\n")
    return _step(trainer, batch)


if __name__ == "__main__":
    Trainer._step = _recording  # type: ignore[method-assign]
    app()
