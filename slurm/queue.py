"""Slurm's own commands, as far as they are needed; what they print is steady over versions."""

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from slurm.resources import Resources
from trainer.errors import RunError


def run(command: Sequence[str]) -> str:
    """A command's output. Raises `RunError` when it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise RunError(f"{command[0]}: not found; this is for a machine from which Slurm's jobs are sent") from None
    if done.returncode:
        raise RunError(f"{command[0]}: {' '.join((done.stderr or done.stdout).split())}")
    return done.stdout


def submit(script: Path, after: Sequence[str] = (), any_end: bool = False) -> str:
    """Send a script -> the job's id. It starts once the jobs `after` ended well, or in any way.

    Raises `RunError`.
    """
    how = "afterany" if any_end else "afterok"
    waits = [f"--dependency={how}:{':'.join(after)}", "--kill-on-invalid-dep=yes"] if after else []
    return run(["sbatch", "--parsable", *waits, str(script)]).strip().partition(";")[0]


def check_nodes(resources: Resources) -> None:
    """Raise `RunError` for more nodes than there are: Slurm would take the job, and never start it."""
    where = ["-p", resources.partition] if resources.partition else []
    rows = [line.split() for line in run(["sinfo", "-h", "-o", "%P %D", *where]).splitlines()]
    # without a partition the default one, which a star marks, is meant
    wanted = rows if resources.partition else [row for row in rows if row[0].endswith("*")] or rows
    counts: dict[str, int] = {}
    for name, count in wanted:
        counts[name] = counts.get(name, 0) + int(count)
    if resources.partition and not counts:
        raise RunError(f"--partition {resources.partition}: there is no such partition; see sinfo")
    if counts and max(counts.values()) < resources.nodes:
        name, most = max(counts.items(), key=lambda one: one[1])
        raise RunError(f"--nodes {resources.nodes}: partition {name.rstrip('*')} has {most}; give fewer")


def mine() -> set[str]:
    """Ids of this user's jobs that wait or run."""
    return set(run(["squeue", "--me", "--noheader", "--format=%A"]).split())


def describe(job: str) -> dict[str, str]:
    """What Slurm knows of a job, by its own names; empty when it knows it no more."""
    try:
        text = run(["scontrol", "show", "job", "-o", job])
    except RunError as error:
        if "Invalid job id" in str(error):
            return {}
        raise
    first = text.splitlines()[0] if text.strip() else ""
    return dict(re.findall(r"(\w[\w/:]*)=(\S*)", first))
