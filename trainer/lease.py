"""Who owns a run's folder: one program at a time, also where locks do not reach over machines.

A lock keeps a second program on the same machine out. It does not on every network file system, and a node that
is cut off from its scheduler may go on with a run that was started again elsewhere. So the owner also stands in a
file: the last one that wrote its name there owns the run, and everyone looks there before writing.
"""

import json
import os
import secrets
import socket
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from shards.atomic import replacing
from shards.lock import FileLock
from trainer.errors import RunError

LEASE = "lease.json"
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Owner:
    """A program that trains a run."""

    id: str
    host: str
    machine: str
    """The same for all programs of one machine, until it starts anew, and for no others."""
    pid: int
    job: str | None
    started: str

    def __str__(self) -> str:
        job = f", job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}, started {self.started}"


def this_program() -> Owner:
    """This process as an owner, with an id of its own."""
    host = socket.gethostname()
    return Owner(
        id=secrets.token_hex(8),
        host=host,
        # a container may share all but the name with another
        machine=f"{host} {_BOOT.read_text().strip()}" if _BOOT.is_file() else host,
        pid=os.getpid(),
        job=os.environ.get("SLURM_JOB_ID"),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
    )


class TakenOverError(RunError):
    """Another program owns the run by now: this one writes nothing more."""


class Lease:
    """Takes a run's folder for this process. Use as a context manager.

    Raises `RunError` when a live process of this machine has it, or when it cannot be made. From another
    machine's it is taken over: that one finds out at its next `check`.
    """

    def __init__(self, run_dir: Path) -> None:
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"run.dir={run_dir}: cannot be made ({error.strerror}); give another folder") from None
        self.run_dir, self.owner = run_dir, this_program()
        self._lock = FileLock(run_dir / ".lock")
        self._locked = self._lock.acquire()
        before = _read(run_dir / LEASE)
        if not self._locked and (before is None or before.machine == self.owner.machine):
            self._lock.close()
            raise RunError(
                f"{run_dir}: another process trains this run{f' ({before})' if before else ''}; wait for it, or "
                "give another run.dir"
            )
        with replacing(run_dir / LEASE, unique=True) as stream:
            stream.write(json.dumps(asdict(self.owner), indent=2).encode() + b"\n")

    def check(self) -> None:
        """Raise `TakenOverError` when the run is no longer this process's: to be called before every writing."""
        owner = _read(self.run_dir / LEASE)
        if owner is None:
            lease = self.run_dir / LEASE
            raise TakenOverError(f"{lease}: is gone or damaged; this run stops and writes nothing more")
        if owner.id != self.owner.id:
            raise TakenOverError(f"{self.run_dir}: taken over by {owner}; this run stops and writes nothing more")
        if not self._locked:  # taken over from a process that had the lock; it is free once that one has ended
            self._locked = self._lock.acquire()

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *_error: object) -> None:
        self._lock.close()


def _read(path: Path) -> Owner | None:
    try:
        return Owner(**json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
