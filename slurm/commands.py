"""`itm submit` and `itm status`."""

from pathlib import Path
from typing import Annotated

import typer


def submit(
    recipe: Annotated[Path | None, typer.Argument(metavar="[RECIPE]", help="A recipe file.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[key=value|RECIPE ...]", help="Settings to change, and recipes to lay over; run.dir=FOLDER."
        ),
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes.")] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=0, help="GPUs a node; 0 trains on the CPU.")] = 8,
    tasks_per_node: Annotated[
        int | None, typer.Option(min=1, help="Processes a node.", show_default="one a GPU, or one")
    ] = None,
    cpus_per_task: Annotated[int, typer.Option(min=1, help="Cores a process, its loader workers' among them.")] = 8,
    time: Annotated[str, typer.Option(help="Time limit of one stay; the job requeues itself.")] = "24:00:00",
    partition: Annotated[str | None, typer.Option(help="Partition.")] = None,
    account: Annotated[str | None, typer.Option(help="Account to charge.")] = None,
    sbatch: Annotated[
        list[str] | None, typer.Option(help="A further option of sbatch, such as constraint=a100; may be repeated.")
    ] = None,
    repeat: Annotated[
        int, typer.Option(min=1, help="Jobs of this run, one after another, where jobs must not be requeued.")
    ] = 1,
    lead: Annotated[int, typer.Option(min=1, help="Seconds before the time limit to save at.")] = 300,
    chain: Annotated[
        Path | None, typer.Option(help="A YAML file of several jobs, each after the one before; without RECIPE.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="With --chain, where scripts and logs go.", show_default="runs/chain-NAME")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the scripts; write and send nothing.")] = False,
) -> None:
    """Write a batch script beside the run, with its recipe and the code's version, and send it to Slurm.

    The variable ITM names the `itm` command where jobs find it elsewhere, ITM_CONTAINER an image to run in.

    With --chain, several: convert as an array, merge, pretrain, fine-tune, evaluate, report (docs/slurm.md).
    """
    from pydantic import ValidationError

    from slurm.chain import read_chain
    from slurm.resources import Resources
    from slurm.submit import Job, training_jobs
    from slurm.submit import submit as send
    from trainer.errors import RunError
    from trainer.recipe import load_recipe

    if (recipe is None) == (chain is None):
        raise RunError("give either a RECIPE or --chain FILE")
    jobs: list[Job]
    if chain is not None:
        jobs = read_chain(chain, (folder or Path("runs") / f"chain-{chain.stem}").absolute(), lead, typer.echo)
    else:
        assert recipe is not None
        try:
            resources = Resources(
                nodes=nodes,
                gpus_per_node=gpus_per_node,
                tasks_per_node=tasks_per_node,
                cpus_per_task=cpus_per_task,
                time=time,
                partition=partition,
                account=account,
                sbatch=sbatch or [],
            )
        except ValidationError as error:
            first = error.errors()[0]
            raise RunError(f"--{first['loc'][0] if first['loc'] else 'sbatch'}: {first['msg']}") from None
        jobs = training_jobs(load_recipe(recipe, overrides or []), resources, repeat=repeat, lead=lead)
    if dry_run:
        for job in jobs:
            waits = f", after {', '.join(before.name for before in job.after)}" if job.after else ""
            typer.echo(f"# {job.path}{waits}\n{job.script}")
        return
    if not jobs:
        return
    for job, identity in send(jobs):
        typer.echo(f"{identity}  {job.path}")
    typer.echo("watch: squeue --me; logs beside the scripts")
    for run in dict.fromkeys(job.folder.parent for job in jobs if job.recipe):
        typer.echo(f"       itm status {run}")


def status(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
) -> None:
    """Say where a run stands: its state, progress, last checkpoint, and its jobs in Slurm's queue."""
    from slurm.status import status as read

    for line in read(run):
        typer.echo(line)
