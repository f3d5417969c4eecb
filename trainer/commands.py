"""The subcommands that train and evaluate. Each is one call of a documented function."""

from pathlib import Path
from typing import Annotated

import typer

RecipeFile = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="A recipe file, such as configs/demo_pretrain.yaml.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[key=value ...]", help="Settings to change, with dotted keys.")
]


def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="Processes to start on this machine; torchrun and srun bring their own."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, say what would run, write nothing.")
    ] = False,
) -> None:
    """Train, or resume the run in run.dir.

    Writes run.dir/metrics.jsonl, evaluations.jsonl, recipe.yaml, tensorboard/ and checkpoints/. A second
    call with the same run.dir goes on from the newest checkpoint. Fine-tune with run.init_from=RUN.
    """
    from trainer.distributed import read_world
    from trainer.errors import RunError
    from trainer.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    world = read_world()
    if world.size > 1 and processes not in (None, world.size):
        raise RunError(f"--processes {processes}: the launcher has started {world.size}; leave the option out")
    from trainer.plan import make_plan

    plan = make_plan(loaded, world.size if world.size > 1 else processes or 1)
    if world.is_main:
        for line in plan.summary():
            typer.echo(line, err=True)
    if dry_run:
        return
    if plan.finished:
        typer.echo(f"{plan.run_dir}: already trained to step {plan.total_steps:,}; raise schedule.epochs to go on")
        return
    if world.size > 1:
        from trainer.loop import train as run

        run(plan, world)
    else:
        from trainer.launch import launch

        launch(plan)
