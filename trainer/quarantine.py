"""The samples that could not be used: named once each in a file, counted, and fatal when there are too many."""

import json
from pathlib import Path

import torch.distributed as dist

from shards.atomic import replacing
from shards.batch import Undecodable
from trainer.distributed import World
from trainer.errors import RunError
from trainer.logs import read_rows

QUARANTINE = "quarantine.jsonl"
GRACE = 1000
"""The limit is judged as if at least this many samples had been read: one early fault stops no run."""


class Quarantine:
    """Collects each rank's undecodable samples; every rank knows the count over all.

    Rewrites the file, so the main process holds the run's lock by then.
    """

    def __init__(self, run_dir: Path, limit: float, world: World) -> None:
        self.path, self.limit, self.world = run_dir / QUARANTINE, limit, world
        self.pending: dict[int, Undecodable] = {}
        rows = read_rows(self.path)
        if world.is_main and rows:
            with replacing(self.path) as stream:  # without a last line that a kill cut short
                stream.writelines(json.dumps(row).encode() + b"\n" for row in rows)
        self.listed = {int(row["sample"]) for row in rows}
        self.met: set[int] = set()
        """By any rank in this call of the program: a resumed run meets what is listed again."""

    def add(self, found: list[Undecodable]) -> None:
        """Note what this rank has met since the last `settle`."""
        self.pending |= {one.sample: one for one in found if one.sample not in self.met}

    def settle(self, samples_read: int) -> int:
        """Write down what all ranks have met; returns how many samples are listed by now.

        All ranks call it together; `samples_read` is over all of them, in this call of the program. Raises
        `RunError` on every rank when more than the limit's share was undecodable.
        """
        everyone: list[list[Undecodable]] = [[] for _ in range(self.world.size)]
        dist.all_gather_object(everyone, list(self.pending.values()))
        met = {one.sample: one for part in everyone for one in part}
        new = [one for sample, one in met.items() if sample not in self.listed]
        if new and self.world.is_main:
            with self.path.open("a") as stream:
                for one in new:
                    stream.write(json.dumps({"sample": one.sample, "reason": one.reason}) + "\n")
        self.listed |= met.keys()
        self.met |= met.keys()
        self.pending.clear()
        found = len(self.met)
        if found > self.limit * max(samples_read, GRACE):
            raise RunError(
                f"{found:,} of {samples_read:,} samples could not be used, more than data.max_undecodable="
                f"{self.limit:g}; they are listed in {self.path}; mend the shards, or raise the limit"
            )
        return len(self.listed)
