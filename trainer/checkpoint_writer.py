"""Saves a run's checkpoints while training goes on: it is held only while every rank copies its share.

The copies lie in host memory that is kept from one save to the next: on rank 0 the weights (under ZeRO stage 3, on
every rank its part of them), on every rank its part of AdamW's moments. `trainer.checkpoint_save` writes them.
"""

import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

from trainer.checkpoint import Progress, add_val
from trainer.checkpoint_folder import remove_leftovers, step_name
from trainer.checkpoint_save import Save
from trainer.config import Recipe
from trainer.errors import RunError
from trainer.failures import is_lost_connection
from trainer.lease import Lease
from trainer.partitions import own_moments, own_weights, whole_shapes
from trainer.tensor_files import HostCopy

GRACE = 30.0
"""Seconds that a save under way is given when training fails."""


class CheckpointWriter:
    """Saves one checkpoint at a time. Every rank makes one, and all call `save`, `check` and `close` together.

    Use as a context manager: an orderly end closes it, an error gives the save under way `GRACE` seconds. `lease`
    is rank 0's, `say` prints a line.
    """

    def __init__(
        self,
        folder: Path,
        engine: Any,
        recipe: Recipe,
        lease: Lease | None,
        say: Callable[[str], None],
        resumed_step: int | None = None,
    ) -> None:
        """`resumed_step` is that of the checkpoint which the run goes on from."""
        self._folder, self._engine, self._recipe, self._lease, self._say = folder, engine, recipe, lease, say
        self._on_gpu = engine.device.type == "cuda"
        self._weights, self._moments = HostCopy(self._on_gpu), HostCopy(self._on_gpu)
        if lease:
            remove_leftovers(folder)
        # only now may another rank begin to write there
        run_id: list[Any] = [lease and lease.owner.id]
        dist.broadcast_object_list(run_id)
        self._run_id: str = run_id[0]
        self._save: Save | None = None
        self._last_step = resumed_step
        self._stall: float | None = None
        # fresh memory costs more than the copy into it, so the first save is to find it ready
        self._thread = self._start(self._reserve, own_weights(engine), own_moments(engine))

    def save(self, progress: Progress) -> None:
        """Save this moment of the run; training may go on when it returns.

        Of a step that is saved already, only the recalls on val are added, where they were measured since.
        Waits for a save that is still under way. Raises `RunError` on every rank when that one failed.
        """
        if progress.step == self._last_step:
            self._add_val(progress)
            return
        begin = time.perf_counter()
        if self._save and self._thread.is_alive():
            self._say(f"waiting for {self._save.path}, which is still being written")
        self.close()
        self._thread.join()
        self._weights.take(own_weights(self._engine))
        self._moments.take(own_moments(self._engine))
        if self._on_gpu:
            torch.cuda.synchronize()
        self._save = Save(
            folder=self._folder,
            run_id=self._run_id,
            progress=progress,
            recipe=self._recipe,
            weights=self._weights,
            moments=self._moments,
            shapes=whole_shapes(self._engine),
            divided=self._engine.zero_optimization_stage() == 3 and dist.get_world_size() > 1,
            store=PrefixStore(f"checkpoints/{self._run_id}", _get_default_store()),
            rank=dist.get_rank(),
            world=dist.get_world_size(),
            lease=self._lease,
        )
        self._thread = self._start(self._save.run)
        self._last_step = progress.step
        self._stall = (self._stall or 0.0) + time.perf_counter() - begin

    def _add_val(self, progress: Progress) -> None:
        if progress.val is None:
            return
        self.close()
        if self._lease:
            self._lease.check()
            add_val(self._folder / step_name(progress.step), progress.val)

    def check(self) -> None:
        """Raise `RunError` on every rank when a save has failed since the last call; free while none goes on."""
        if self._save is None:
            return
        ended = torch.tensor(float(not self._thread.is_alive()), device=self._engine.device)
        dist.all_reduce(ended, dist.ReduceOp.MIN)
        if ended.item():
            self.close()

    def stall(self) -> dict[str, float]:
        """`checkpoint_stall`: seconds for which saves held training since the last call; empty without a save."""
        stall, self._stall = self._stall, None
        return {} if stall is None else {"checkpoint_stall": round(stall, 4)}

    def close(self) -> None:
        """Wait for the save that is under way. Raises `RunError` on every rank when it failed."""
        if self._save is None:
            return
        self._thread.join()
        dist.barrier()  # process 0, which the others ask how it went, must not end before they know
        error, self._save = self._save.error, None
        if error is not None:
            raise RunError(error)

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if error is None:
            self.close()
        elif self._save:
            can_end = isinstance(error, Exception) and not is_lost_connection(error)
            self._thread.join(GRACE if can_end else 0.0)
            self._save.stop.set()
            self._thread.join(GRACE)

    def _start(self, target: Callable[..., None], *arguments: Any) -> Thread:
        thread = Thread(target=target, args=arguments, name="checkpoint", daemon=True)
        thread.start()
        return thread

    def _reserve(self, weights: dict[str, torch.Tensor], moments: dict[str, torch.Tensor]) -> None:
        self._weights.reserve(weights)
        self._moments.reserve(moments)
