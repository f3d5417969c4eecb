"""Being told to stop: signals and a time budget, remembered until the run has saved and can end.

Imports nothing heavy, so that it listens before torch is imported, which takes seconds.
"""

import os
import signal
import time
from types import FrameType

from shards.signals import FOR_THE_PARENT

SAVED = 85
"""Exit code of a run that was stopped before its end: it has saved, run it again."""
INTERRUPTED = 130
_ON_REQUEST = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """What this process was told. Any number of signals is one request; only a second Ctrl-C is more."""

    def __init__(self) -> None:
        self.deadline = float("inf")
        self.signal: signal.Signals | None = None
        self._started, self._is_child = time.monotonic(), False

    def allow(self, minutes: float | None) -> None:
        """Stop so many minutes after this object was made; None for no limit."""
        if minutes is not None:
            self.deadline = self._started + 60 * minutes

    @property
    def reason(self) -> str | None:
        """Why to stop; None as long as there is no need."""
        if self.signal is not None:
            return self.signal.name
        return "run.max_minutes" if time.monotonic() > self.deadline else None

    @property
    def exit_code(self) -> int:
        return INTERRUPTED if self.signal is signal.SIGINT else SAVED

    def listen(self) -> None:
        """From now on SIGTERM and SIGUSR1 are remembered instead of ending the process. Main thread only."""
        for number in _ON_REQUEST:
            signal.signal(number, self._remember)

    def close(self) -> None:
        """All is done: no signal changes the exit code any more, as the interpreter's last moments would let it."""
        for number in _ON_REQUEST:
            signal.signal(number, signal.SIG_IGN)

    def hold_interrupts(self) -> None:
        """From now on the first Ctrl-C is remembered, too; the second raises `KeyboardInterrupt`.

        Where SIGINT is ignored, as in a background job of a script, it stays so.
        """
        if not self._is_child and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._interrupt)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self.signal = self.signal or signal.Signals(number)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.signal is signal.SIGINT:
            raise KeyboardInterrupt
        self._remember(number, frame)
        if os.environ.get("RANK", "0") == "0":
            # not by print, which the handler may have interrupted and cannot enter twice
            os.write(2, b"itm: stopping after this step; press again to stop at once\n")

    def listen_as_child(self, deadline: float) -> None:
        """As `listen`, in a process started within `shards.signals.held`.

        Ctrl-C is a request, too, and no more than that: its parent gets it as well, and answers a second one.
        """
        self.deadline, self._is_child = deadline, True
        self.listen()
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._remember)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FOR_THE_PARENT)
