"""`itm submit`: from a recipe, or a chain of jobs, to batch scripts beside the run and jobs in the queue."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from slurm import queue, render
from slurm.resources import Resources
from trainer.config import Recipe
from trainer.errors import RunError
from trainer.recipe import dump_recipe, run_folder

FOLDER, OUTCOME = "slurm", "outcome"
JOBS = "jobs.jsonl"


@dataclass
class Job:
    """A script to be sent, and the jobs that it waits for."""

    name: str
    folder: Path
    """Where script, log and record lie."""
    script: str
    recipe: Recipe | None = None
    """Of a training job."""
    after: list["Job"] = field(default_factory=list)
    any_end: bool = False
    """Whether it starts however those before it ended."""
    resources: Resources = field(default_factory=Resources)

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name}.sbatch"


def itm_command() -> list[str]:
    """This program, as a job is to call it from a disk that the nodes see; or what the variable ITM names."""
    return [os.environ["ITM"]] if "ITM" in os.environ else [sys.executable, "-m", "trainer.cli"]


def training_jobs(
    recipe: Recipe, resources: Resources, *, name: str | None = None, repeat: int = 1, lead: int = render.LEAD
) -> list[Job]:
    """The jobs of one run: one that requeues itself, or several, each of which goes on where the last one ended."""
    run = run_folder(recipe)
    folder, name = run.absolute() / FOLDER, name or run.name
    # the snapshot is resolved; run.dir is said once more for the script to see
    arguments = [str(folder / "recipe.yaml"), f"run.dir={recipe.run.dir}"]
    jobs: list[Job] = []
    for number in range(1, repeat + 1):
        own = f"{name}-{number}" if repeat > 1 else name
        script = render.train_script(
            resources,
            name=own,
            log=str(folder / f"{own}-%j.log"),
            itm=itm_command(),
            arguments=arguments,
            lead=lead,
        )
        jobs.append(Job(own, folder, script, recipe, jobs[-1:], any_end=True, resources=resources))
    return jobs


def task_job(
    name: str,
    folder: Path,
    command: Sequence[str],
    resources: Resources,
    *,
    parts: int = 0,
    lead: int = render.LEAD,
) -> Job:
    """A job of one task, or an array of `parts`."""
    log = str(folder / (f"{name}-%A-%a.log" if parts else f"{name}-%j.log"))
    script = render.task_script(
        resources, name=name, log=log, itm=itm_command(), command=command, parts=parts, lead=lead
    )
    return Job(name, folder, script, resources=resources)


def submit(jobs: Sequence[Job]) -> list[tuple[Job, str]]:
    """Write the scripts and what they need, send them in order -> each with its id. Raises `RunError`.

    Jobs that were sent before one that is refused are cancelled again.
    """
    for job in jobs:
        queue.check_nodes(job.resources)
    _check_idle(jobs)
    for job in jobs:
        write(job)
    sent: dict[str, str] = {}
    try:
        for job in jobs:
            sent[job.name] = queue.submit(job.path, [sent[before.name] for before in job.after], job.any_end)
            record = {"id": sent[job.name], "name": job.name, "script": str(job.path)}
            with (job.folder / JOBS).open("a") as stream:
                stream.write(json.dumps(record) + "\n")
    except RunError:
        for identity in sent.values():
            queue.run(["scancel", identity])
        raise
    return [(job, sent[job.name]) for job in jobs]


def _check_idle(jobs: Sequence[Job]) -> None:
    """Raise `RunError` for a run that a job is at already: the younger of two would take it from the older."""
    mine = queue.mine()
    for run in dict.fromkeys(job.folder for job in jobs if job.recipe):
        for sent in sent_jobs(run):
            if sent["id"] in mine:
                raise RunError(
                    f"{run.parent}: job {sent['id']} is in the queue for it; wait for it, or scancel {sent['id']}"
                )


def sent_jobs(folder: Path) -> list[dict[str, str]]:
    """`id`, `name` and `script` of all that was sent from a folder; a line that a kill cut short is left out."""
    path = folder / JOBS
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def write(job: Job) -> None:
    """The script, and for a run its recipe as it resolves now and the version of the code."""
    job.folder.mkdir(parents=True, exist_ok=True)
    if job.recipe is not None:
        _write(job.folder / "recipe.yaml", dump_recipe(job.recipe))
        _write(job.folder / "code.txt", code_version())
    _write(job.path, job.script)


def _write(path: Path, text: str) -> None:
    """Whole or not at all: an earlier job may be reading it."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


def code_version() -> str:
    """The version of this program: that of the package, or the commit and what was changed since."""
    root = Path(__file__).parents[1]
    if shutil.which("git") is None or not (root / ".git").exists():
        from importlib.metadata import version

        return f"itm-scale {version('itm-scale')}\n"
    said = [
        subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True, check=False).stdout
        for arguments in (("rev-parse", "HEAD"), ("diff", "HEAD"))
    ]
    return f"commit {said[0].strip()}\n{said[1]}"
