"""`itm status`: where a run stands, from its folder and from Slurm's queue. Loads nothing heavy."""

import json
from pathlib import Path
from typing import Any

from slurm import queue
from slurm.submit import FOLDER, OUTCOME, sent_jobs
from trainer.errors import RunError

METRICS, LEASE = "metrics.jsonl", "lease.json"


def status(run: Path) -> list[str]:
    """A line each for the state, the progress, the checkpoints and the jobs. Raises `RunError` for no run."""
    if not run.is_dir():
        raise RunError(f"{run}: no such run")
    lines = [f"run         {run}"]
    outcome = run / OUTCOME
    rows = _rows(run / METRICS)
    if outcome.is_file():
        lines.append(f"ended       {outcome.read_text().strip()}")
    if rows:
        last = rows[-1]
        lines.append(
            f"progress    step {last['step']:,}, epoch {last['epoch']:.2f}, loss {last['loss']:.4f}, "
            f"{last['samples_per_second']:,.0f} samples/s"
        )
    checkpoints = sorted(path.parent for path in run.glob("checkpoints/step-*/state.json"))
    lines.append(f"checkpoint  {checkpoints[-1].name if checkpoints else 'none yet'}")
    jobs = {job["id"]: job["name"] for job in sent_jobs(run / FOLDER)}
    by_hand = _owner(run / LEASE)
    if by_hand and by_hand not in jobs:
        jobs[by_hand] = "by hand"
    for identity, name in jobs.items():
        lines.append(f"job         {identity} {name}: {_job(identity)}")
    if not (outcome.is_file() or rows or checkpoints or jobs):
        raise RunError(f"{run}: neither a run nor one that was submitted")
    return lines


def _job(identity: str) -> str:
    try:
        found = queue.describe(identity)
    except RunError as error:  # the rest can be told without Slurm
        return str(error)
    if not found:
        return "no longer known to Slurm"
    state, reason = found["JobState"], found.get("Reason", "None")
    said = state if reason == "None" else f"{state} ({reason})"
    restarts = int(found.get("Restarts", "0"))
    nodes = found.get("NodeList", "(null)")
    return (
        said
        + (f", restarted {restarts} time{'s' * (restarts != 1)}" if restarts else "")
        + (f", on {nodes}" if nodes != "(null)" else "")
        + (f", exit code {found['ExitCode']}" if state in ("FAILED", "COMPLETED", "NODE_FAIL", "TIMEOUT") else "")
    )


def _owner(lease: Path) -> str | None:
    """The job that last trained the run."""
    job: str | None = json.loads(lease.read_text())["job"] if lease.is_file() else None
    return job


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; a last line that a kill cut short is left out."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
