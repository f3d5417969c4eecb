"""The subcommands that train and evaluate. Each is one call of a documented function."""

import os
from pathlib import Path
from typing import Annotated

import typer

from shards.commands.outfile import Overwrite, check_file

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file, or one of `itm recipe --list`.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[key=value|RECIPE ...]",
        help="Settings to change, with dotted keys, and recipes to lay over, such as towers/vit_b16.",
    ),
]

Workers = Annotated[int, typer.Option(min=0, help="Processes that load images; 0 loads in this one.")]


def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="Processes to start on this machine; a launcher such as torchrun brings its own."),
    ] = None,
    trace: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Trace step N into run.dir/trace: log.trace_step=N.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Say what would run; build the model with its weights, open the data, write nothing."
        ),
    ] = False,
) -> None:
    """Train, or resume the run in run.dir.

    Writes run.dir/metrics.jsonl, evaluations.jsonl, recipe.yaml, tensorboard/ and checkpoints/. A second
    call with the same run.dir goes on from the newest checkpoint. Fine-tune with run.init_from=RUN.

    SIGTERM, SIGUSR1, run.max_minutes and a first Ctrl-C save and stop after the step under way. Exit code: 0
    finished, 85 saved before the end (run it again), 130 after Ctrl-C, 1 an error.
    """
    from trainer.preemption import StopRequest

    stop = StopRequest()
    if not dry_run:
        stop.listen()  # before torch is imported, which takes seconds
    from trainer.distributed import read_world
    from trainer.launchers import check_processes
    from trainer.recipe import load_recipe

    traced = [] if trace is None else [f"log.trace_step={trace}"]
    loaded = load_recipe(recipe, [*(overrides or []), *traced])
    stop.allow(loaded.run.max_minutes)
    if not dry_run:
        check_processes(os.environ, processes)
    world = read_world()
    from trainer.outcome import first_failure, write_outcome
    from trainer.plan import make_plan

    plan = make_plan(loaded, world.size if world.size > 1 else processes or 1)
    if world.is_main:
        _say(plan.summary())
    if dry_run:
        from trainer.rehearsal import rehearse

        _say(rehearse(plan, world))
        return
    if plan.finished and world.is_main:
        typer.echo(f"{plan.run_dir}: already trained to step {plan.total_steps:,}; raise schedule.epochs to go on")
    if plan.finished and world.size == 1:
        write_outcome(plan.run_dir, "finished", 0)
        return
    try:
        with first_failure(plan.run_dir, world):
            if world.size > 1:
                from trainer.loop import train as run

                stopped = run(plan, world, stop)
            else:
                from trainer.launch import launch

                stopped = launch(plan, stop)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on from the newest checkpoint, if there is one") from None
    stop.close()
    if world.is_main:
        write_outcome(plan.run_dir, *("saved", stop.exit_code) if stopped else ("finished", 0))
    if stopped:
        raise typer.Exit(stop.exit_code)


def _say(lines: list[str]) -> None:
    for line in lines:
        typer.echo(line, err=True)


def evaluate(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN_OR_CHECKPOINT ...",
            help="A run's folder (its best checkpoint on val), a checkpoint, or what `itm export` wrote; several "
            "are one ensemble.",
        ),
    ],
    data: Annotated[str, typer.Option(help="Folder of shards to measure on, such as DIR/test, or its URL.")],
    out: Annotated[
        Path | None,
        typer.Option(help="JSON file to write; tables in Markdown (.md) and LaTeX (.tex) go beside it."),
    ] = None,
    overwrite: Overwrite = False,
    batch_size: Annotated[int, typer.Option(min=2, help="Images embedded at once.")] = 128,
    workers: Workers = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be measured, and measure nothing.")
    ] = False,
) -> None:
    """Measure by every protocol that the split allows, beside chance and published results.

    Recalls and rSum of any split; Flickr30K 1K; COCO 1K, COCO 5K, CxC and ECCV Caption. 95 % intervals are those of
    a bootstrap over the images. The similarities of an ensemble are averaged. Under torchrun or srun, all processes
    embed.

    A tie counts against the model: a wrong item that scores as high as the right one ranks before it.
    """
    from shards.progress import counted, progress_bar
    from trainer.errors import RunError

    if out is not None and out.suffix in (".md", ".tex"):
        raise RunError(f"--out {out}: the name of the JSON file; {out.suffix} is written beside it")
    for file in (out, out.with_suffix(".md"), out.with_suffix(".tex")) if out else ():
        check_file(file, overwrite)
    from trainer import evaluate as evaluation
    from trainer.distributed import device_of, join, leave, read_world
    from trainer.evaluation.tables import as_text
    from trainer.subject import find_subject, read_split

    world = read_world()
    found = [find_subject(path) for path in checkpoints]
    manifest = read_split(found[0].checkpoint, data)
    what = f"{', '.join(str(one.path) for one in found)} on {data}: "
    what += f"{counted(manifest.num_samples, 'image')}, {counted(manifest.num_captions, 'caption')}"
    if dry_run:
        typer.echo(f"would measure {what}")
        return
    if world.size > 1:
        join(world, device_of(world))
    if world.is_main:
        typer.echo(what)
    share = -(-manifest.num_samples // world.size) * len(found)
    with progress_bar("embed", share) as advance:
        measured = evaluation.evaluate(
            [one.path for one in found],
            data,
            batch_size=batch_size,
            workers=workers,
            on_batch=advance if world.is_main else lambda _images: None,
            world=world,
        )
    leave()
    if not world.is_main:
        return
    for table in measured.tables():
        typer.echo(as_text(table) + "\n")
    typer.echo(f"rSum is {measured.result.rsum / measured.chance.rsum:.1f} times that of chance")
    for remark in measured.remarks():
        typer.echo(remark)
    if out:
        written = evaluation.write_results(measured, out)
        typer.echo(f"wrote {', '.join(map(str, written))}")


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN ...", help="Folders of runs; several are compared, with the last one in detail."
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            help="Folder of shards to measure on and to take the galleries from, or its URL; without it the page "
            "holds curves, recipe and environment, also of a run in progress."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("report.html"),
    overwrite: Overwrite = False,
    workers: Workers = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be written, and write nothing.")
    ] = False,
) -> None:
    """Write one self-contained HTML page of a run, or of several compared.

    Curves, results, the best and the worst queries, what the prototypes stand for, soft positives, confusions,
    recipe and environment.
    """
    from shards.progress import counted, progress_bar

    check_file(out, overwrite)
    from trainer.report.page import images_to_embed, write_report

    images = images_to_embed(runs, data)
    if dry_run:
        on = f" on {data}: {counted(images, 'image')} to embed" if data else ""
        typer.echo(f"would write {out} from {', '.join(map(str, runs))}{on}")
        return
    with progress_bar("embed", images) as advance:
        write_report(runs, data, out, workers=workers, on_batch=advance)
    typer.echo(f"wrote {out}")


def recipe(
    recipe: Annotated[Path | None, typer.Argument(metavar="[RECIPE]", help="A recipe file.")] = None,
    overrides: Overrides = None,
    keys: Annotated[bool, typer.Option("--keys", help="List every key with its default and meaning.")] = False,
    shipped: Annotated[bool, typer.Option("--list", help="List the recipes that come with the package.")] = False,
) -> None:
    """Print a recipe as it resolves, with what it extends and the overrides, or list all keys or all recipes."""
    from trainer.config import Recipe
    from trainer.recipe import SHIPPED, dump_recipe, flatten, load_recipe, recipe_keys, shipped_recipes

    if shipped:
        listed = list(shipped_recipes())
        width = max(len(name) for name, _ in listed)
        for name, meaning in listed:
            typer.echo(f"{name:{width}}  {meaning}")
        typer.echo(f"in {SHIPPED}; `itm train NAME` and `itm recipe NAME` find them from anywhere")
        return
    if keys or recipe is None:
        defaults = flatten(Recipe().model_dump())
        for key, meaning in recipe_keys().items():
            typer.echo(f"{key} = {defaults[key]!r}" + (f"    # {meaning}" if meaning else ""))
        return
    typer.echo(dump_recipe(load_recipe(recipe, overrides or [])), nl=False)
