"""How a run ended, in one line of `RUN/outcome` that batch scripts read: `finished 0`, `saved 85`, `failed 1 ...`.

`lost 1 ...` is a failure, too, of a process that is gone without a word, perhaps with its machine.

A launcher's own exit code does not tell: srun's is that of any of the tasks, torchrun's is always 1.
"""

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from model.errors import ModelError
from shards.atomic import replacing
from shards.errors import DataError
from trainer.distributed import World
from trainer.errors import RunError
from trainer.failures import LostPeerError
from trainer.lease import TakenOverError

OUTCOME = "outcome"
FAILED = 1


def write_outcome(run_dir: Path, word: str, code: int) -> None:
    """Say how the run ended; by the main process."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with replacing(run_dir / OUTCOME) as stream:
        stream.write(f"{word} {code}\n".encode())


@contextmanager
def first_failure(run_dir: Path, world: World) -> Iterator[None]:
    """The error that leaves this block is told as the run's, unless another process has told one before."""
    path = run_dir / OUTCOME
    if world.is_main:
        path.unlink(missing_ok=True)
    try:
        yield
    except TakenOverError:
        raise  # the folder is another's
    except Exception as error:
        kind = "" if isinstance(error, DataError | ModelError | RunError) else f"{type(error).__name__}: "
        where = f"process {world.rank} on {socket.gethostname()}"
        word = "lost" if isinstance(error, LostPeerError) else "failed"
        line = f"{word} {FAILED} {where}: {kind}{' '.join(str(error).split())}\n"
        with suppress(OSError), path.open("x") as stream:  # a full disk has been told of by the error itself
            stream.write(line)
        raise
