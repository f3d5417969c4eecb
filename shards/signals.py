"""Signals that reach every process of a job, while one of them has yet to say what they mean."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

FOR_THE_PARENT = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""What terminals, schedulers and launchers send to all processes alike; the one that is in charge answers."""


@contextmanager
def held() -> Iterator[None]:
    """`FOR_THE_PARENT` wait for the end of this block; in processes started in it, until these unblock them.

    A process that still starts would otherwise be ended by what it cannot yet answer. Main thread only.
    """
    from multiprocessing import resource_tracker

    before = signal.pthread_sigmask(signal.SIG_BLOCK, FOR_THE_PARENT)
    try:
        resource_tracker.ensure_running()  # when it starts, it unblocks two of them
        signal.pthread_sigmask(signal.SIG_BLOCK, FOR_THE_PARENT)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
