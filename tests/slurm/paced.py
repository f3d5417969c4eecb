"""`itm`, but process 0 waits before every step that `PAUSES` names, until `run.dir/go-STEP` is there.

So a test interrupts a run where it means to, on a machine of any speed. `FAULT` is that of `faulty`.
"""

import os
import time
from typing import Any

from shards.batch import Batch
from trainer.cli import app
from trainer.loop import Trainer

if "FAULT" in os.environ:
    import tests.end_to_end.faulty  # noqa: F401

_PAUSES = os.environ.get("PAUSES", "").split()
_step = Trainer._step


def _paced(trainer: Trainer, batch: Batch) -> Any:
    if trainer.world.is_main and str(trainer.step + 1) in _PAUSES:
        go = trainer.plan.run_dir / f"go-{trainer.step + 1}"
        while not go.exists() and trainer.stop.signal is None:
            time.sleep(0.05)
    return _step(trainer, batch)


Trainer._step = _paced  # type: ignore[method-assign]

if __name__ == "__main__":
    app()
