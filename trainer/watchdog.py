"""Says where every rank stands when a run hangs, and leaves it running."""

import faulthandler
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

FOLDER = "stacks"


class Watchdog:
    """Writes this rank's stacks when nothing is heard of it for too long. A context; one a process.

    `run.dir/stacks/rank-N.txt` is written by a thread that needs nothing of the interpreter, which may hang, too;
    the same is then printed on standard error.
    """

    def __init__(self, run_dir: Path, rank: int, minutes: float | None) -> None:
        """`minutes` None: no watch."""
        self._seconds = None if minutes is None else 60 * minutes
        # arming takes half a millisecond, too much for every step of a small model
        self._interval = min(1.0, 6 * minutes) if minutes else 0.0
        self._path, self._rank = run_dir / FOLDER / f"rank-{rank}.txt", rank
        self._heard, self._armed, self._what = 0.0, 0.0, ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="itm-watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        if self._seconds is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a")
            self.heard("the first step")
            self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._seconds is not None:
            faulthandler.cancel_dump_traceback_later()
            self._over.set()
            self._thread.join()
            self._file.close()
            if self._path.stat().st_size == 0:
                self._path.unlink()
                with suppress(OSError):  # not empty: another rank's are still there
                    self._path.parent.rmdir()

    @staticmethod
    def remove_leftovers(run_dir: Path, world: int) -> None:
        """Remove what ranks that this run has no more opened and never wrote to; only for the owner of the run."""
        for path in (run_dir / FOLDER).glob("rank-*.txt"):
            if int(path.stem.removeprefix("rank-")) >= world and path.stat().st_size == 0:
                path.unlink()

    def heard(self, what: str) -> None:
        """The run goes on, now with `what`: the time starts anew."""
        if self._seconds is None:
            return
        self._heard, self._what = time.monotonic(), what
        if self._heard - self._armed >= self._interval:
            self._armed = self._heard
            faulthandler.dump_traceback_later(self._seconds + self._interval, file=self._file)

    def _watch(self) -> None:
        assert self._seconds is not None
        told = 0.0
        while not self._over.wait(self._interval):
            heard = self._heard
            # by then the file is written
            if heard != told and time.monotonic() > heard + self._seconds + 3 * self._interval:
                told = heard
                stacks = self._path.read_text().rpartition("Timeout (")[2].splitlines()[1:]
                lines = [
                    f"rank {self._rank}: {self._what} takes more than {self._seconds / 60:g} minutes; "
                    f"its stacks, also in {self._path}:",
                    *(f"rank {self._rank} | {line}" for line in stacks),
                ]
                sys.stderr.write("\n".join(lines) + "\n")
                sys.stderr.flush()
