"""One save, after training has gone on: from the copies in every rank's memory to one committed folder.

Every rank writes and hashes its own files into one hidden folder and says so; rank 0, when all have, puts
`state.json` beside them and renames the folder. They talk through the store by which the ranks found each other,
and take part in no collective: a save never waits behind a training step, and can be stopped at any time.
"""

import json
import shutil
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from threading import Event
from typing import Any

import torch
import torch.distributed as dist

from shards.atomic import sync_folder
from trainer.checkpoint import CONCEPTS, FORMAT_VERSION, RECIPE, STATE, WEIGHTS, Progress, seal
from trainer.checkpoint_folder import prune, retire, step_name
from trainer.config import Recipe
from trainer.distributed import TIMEOUT
from trainer.errors import RunError
from trainer.lease import Lease
from trainer.recipe import dump_recipe
from trainer.tensor_files import Entry, HostCopy, TensorFiles, Written, sort_entries, write_file, write_tensors

_PAUSE = 0.05
_SEEN_SECONDS = 90.0
"""In which a file of another node must be seen: network file systems remember for a while what a folder held."""


class _StoppedError(Exception):
    pass


@dataclass
class Save:
    """What one rank needs for its part in a save; `run` does it and leaves `error`, the same on every rank."""

    folder: Path
    run_id: str
    progress: Progress
    recipe: Recipe
    weights: HostCopy
    moments: HostCopy
    shapes: dict[str, tuple[int, ...]]
    """Of the whole parameters."""
    divided: bool
    """Whether each rank holds a span of every weight, not rank 0 all of them."""
    store: Any
    rank: int
    world: int
    lease: Lease | None
    """Rank 0's."""
    stop: Event = field(default_factory=Event)
    error: str | None = "not saved: see the traceback"

    @property
    def path(self) -> Path:
        return self.folder / step_name(self.progress.step)

    @property
    def partial(self) -> Path:
        return self.path.with_name(f".{self.path.name}.{self.run_id}.partial")

    def run(self) -> None:
        """Write this rank's share; on rank 0, commit the whole or remove what was written."""
        outcome = f"{self.progress.step}/outcome"
        try:
            share: dict[str, Any] = {"files": {}, "error": self.error}
            try:
                share["error"] = self._attempt(lambda: share["files"].update(self._write_share()))
            finally:
                self.store.set(f"{self.progress.step}/{self.rank}", json.dumps(share))
            if self.rank == 0:
                try:
                    self.error = self._attempt(self._commit)
                finally:
                    shutil.rmtree(self.partial, ignore_errors=True)
                    self.store.set(outcome, json.dumps(self.error))
            else:
                self.error = self._wait_for(outcome)
        except (_StoppedError, dist.DistError):
            self.error = f"{self.path}: not saved, since another process of this run has ended"
            if self.rank == 0:  # others might remove what is being committed; the run's next owner removes it all
                shutil.rmtree(self.partial, ignore_errors=True)

    def _attempt(self, do: Any) -> str | None:
        """What went wrong, in a line for the user."""
        try:
            do()
        except OSError as error:
            return (
                f"{self.path}: cannot be written ({error.strerror}); make room or mend the disk, then start the "
                "run again: it goes on from the checkpoint before"
            )
        except RunError as error:
            return str(error)
        return None

    def _write_share(self) -> dict[str, Any]:
        self._check_finite()
        self.partial.mkdir(parents=True, exist_ok=True)
        files: dict[str, Written] = {}
        if self.divided:
            spans = [(entry, tensor) for entry, tensor in self.weights.items() if "@" in entry.key]
            entries, part = [entry for entry, _ in spans], _part(self.rank)
            files[part] = write_tensors(self.partial / part, entries, (tensor for _, tensor in spans), self._go_on)
        elif self.rank == 0:
            files[WEIGHTS] = self.weights.write(self.partial / WEIGHTS, self._go_on)
        moments = f"optimizer-{self.rank:05d}-of-{self.world:05d}.safetensors"
        files[moments] = self.moments.write(self.partial / moments, self._go_on)
        return {name: asdict(written) for name, written in files.items()}

    def _check_finite(self) -> None:
        for entry, tensor in self.weights.items():
            self._go_on()
            name = entry.key.partition("@")[0]
            if name in self.shapes and not torch.isfinite(tensor).all():
                raise RunError(
                    f"step {self.progress.step}: {name} is not finite, so it is not saved; lower optimizer.lr, or "
                    "resume"
                )

    def _commit(self) -> None:
        files = self._gather_shares()
        if self.divided:
            files = {name: written for name, written in files.items() if not name.endswith(_PART)}
            files[WEIGHTS] = self._join_weights()
        files[RECIPE] = write_file(self.partial / RECIPE, [dump_recipe(self.recipe).encode()], self._go_on)
        if self.recipe.model.has_consensus:
            concepts = Path(str(self.recipe.model.consensus.concepts)).read_bytes()
            files[CONCEPTS] = write_file(self.partial / CONCEPTS, [concepts], self._go_on)
        state = {
            "format_version": FORMAT_VERSION,
            **asdict(self.progress),
            "random": {"seed": self.recipe.run.seed, "step": self.progress.step},
            "versions": {name: version(name) for name in ("itm-scale", "torch", "deepspeed", "open_clip_torch")},
            "files": {name: asdict(written) for name, written in files.items()},
        }
        write_file(self.partial / STATE, [seal(state)], self._go_on)
        sync_folder(self.partial)
        self._check_lease()
        # the same step may be there from a program that this one has taken over from
        doomed = retire(self.path) if self.path.exists() else None
        self.partial.rename(self.path)
        sync_folder(self.folder)
        if doomed:
            shutil.rmtree(doomed)
        self._check_lease()  # whoever has it now may go on from what would be pruned
        prune(self.folder, self.recipe.checkpoint.keep_last)

    def _gather_shares(self) -> dict[str, Written]:
        """What all ranks have written, seen from here. Raises `RunError` when one failed."""
        shares = [self._wait_for(f"{self.progress.step}/{rank}") for rank in range(self.world)]
        self._check_lease()  # its new owner removes what others have half-written: no error of theirs to tell
        for share in shares:
            if share["error"]:
                raise RunError(share["error"])
        files = {name: Written(**written) for share in shares for name, written in share["files"].items()}
        deadline = time.monotonic() + _SEEN_SECONDS
        for name in files:
            while not (self.partial / name).is_file():
                if time.monotonic() > deadline:
                    raise RunError(
                        f"{self.partial / name}: written, but not seen by process 0; run.dir must be shared"
                    )
                self._pause()
        return files

    def _join_weights(self) -> Written:
        """One file of whole weights from the ranks' spans, which are removed."""
        parts = [self.partial / _part(rank) for rank in range(self.world)]
        spans = TensorFiles(parts)
        buffers = {entry.key: (entry, tensor) for entry, tensor in self.weights.items() if "@" not in entry.key}
        parameters = [Entry(name, torch.float32, shape) for name, shape in self.shapes.items()]
        entries = sort_entries([*parameters, *(entry for entry, _ in buffers.values())])
        tensors = (
            buffers[entry.key][1] if entry.key in buffers else spans.read(entry.key, 0, entry.numel)
            for entry in entries
        )
        written = write_tensors(self.partial / WEIGHTS, entries, tensors, self._go_on)
        for part in parts:
            part.unlink()
        return written

    def _check_lease(self) -> None:
        if self.lease:
            self.lease.check()

    def _wait_for(self, key: str) -> Any:
        deadline = time.monotonic() + TIMEOUT.total_seconds()
        while not self.store.check([key]):
            if time.monotonic() > deadline:
                raise _StoppedError
            self._pause()
        return json.loads(self.store.get(key))

    def _pause(self) -> None:
        if self.stop.wait(_PAUSE):
            raise _StoppedError

    def _go_on(self) -> None:
        if self.stop.is_set():
            raise _StoppedError


_PART = ".part"


def _part(rank: int) -> str:
    return f"weights-{rank:05d}{_PART}"
