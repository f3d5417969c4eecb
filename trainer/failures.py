"""One rank's failure ends all ranks soon, and is what the user reads.

Ranks wait for each other in collectives, where one whose peer has failed would hang (NCCL) or tell of a lost
connection (gloo). So the rank that fails says so in the store through which the ranks have met, and the others end
silently.
"""

import os
import threading
import time
from datetime import timedelta
from types import TracebackType
from typing import Literal

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from trainer.distributed import World
from trainer.errors import RunError

POLL_SECONDS = 0.5
FIRST_SPEAKS_SECONDS = 2.0
"""What the others leave to the one that failed first, to print its message before a launcher ends it."""
LOST_PEER = "another process is gone; a signal, or out of memory? `itm train` with the same run.dir resumes"


class LostPeerError(RunError):
    """Another process is gone without a word; which, and why, its launcher knows better."""


class SharedFailure:
    """A context around all that a rank does between joining the process group and leaving it.

    The first error of any rank goes its way. Every other rank exits with 1 and no words, wherever it waits.
    """

    def __init__(self, world: World) -> None:
        self._store: Store | None = None
        self._over = threading.Event()
        if world.size > 1:
            # a connection of its own: one that waits for a key keeps all others of its connection waiting
            client = TCPStore(
                os.environ["MASTER_ADDR"],
                int(os.environ["MASTER_PORT"]),
                is_master=False,
                wait_for_workers=False,
                timeout=timedelta(seconds=60),
            )
            # torchrun's store outlives the processes that it starts again
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            self._store = PrefixStore(f"itm/{attempt}", client)
            self._watch = threading.Thread(target=self._end_with_others, name="itm-failures", daemon=True)
        self._hosts_store = world.is_main

    def __enter__(self) -> None:
        if self._store is not None:
            self._watch.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> Literal[False]:
        if self._store is None:
            return False
        self._over.set()
        self._watch.join()
        if error is None:
            dist.barrier()  # with the store's host gone, the others would take this for its failure
        elif is_lost_connection(error):
            if self._told_soon():
                raise SystemExit(1)
            raise LostPeerError(LOST_PEER) from None
        elif not self._is_first():
            raise SystemExit(1)
        return False

    def _is_first(self) -> bool:
        """Tell the others of an error of this rank's own; whether it is the first."""
        assert self._store is not None
        try:
            first = self._store.add("failed", 1) == 1
        except dist.DistError:
            return True  # the store's host is gone, so somebody failed before; better twice than never
        if first and self._hosts_store:
            time.sleep(2 * POLL_SECONDS)  # the store goes with this process
        return first

    def _told(self) -> bool | None:
        """Whether some rank has told of a failure; None where the store's host is gone."""
        assert self._store is not None
        try:
            return self._store.check(["failed"])
        except dist.DistError:
            return None

    def _told_soon(self) -> bool:
        """As `_told`, after a moment for a peer that is just failing."""
        end = time.monotonic() + FIRST_SPEAKS_SECONDS
        while (told := self._told()) is False and time.monotonic() < end:
            time.sleep(POLL_SECONDS)
        return bool(told)

    def _end_with_others(self) -> None:
        while not self._over.wait(POLL_SECONDS):
            if (told := self._told()) is False:
                continue
            if self._over.wait(FIRST_SPEAKS_SECONDS):
                return
            if told is None:
                os.write(2, f"itm: error: {LOST_PEER}\n".encode())
            os._exit(1)


def is_lost_connection(error: BaseException) -> bool:
    """Whether the error is that a collective found a peer gone."""
    words = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL", "gloo/transport")
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )
