"""The subcommand that foretells what a run takes. It is one call of a documented function."""

from pathlib import Path
from typing import Annotated

import typer

from shards.commands.outfile import Overwrite, check_file
from trainer.commands import Overrides


def plan(
    recipe: Annotated[
        Path,
        typer.Argument(metavar="RECIPE_OR_RUN", help="A recipe; or a run's folder, to see what it measured."),
    ],
    overrides: Overrides = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs in all; default of a run: what it had.")] = None,
    gpu_memory: Annotated[float, typer.Option(help="Memory of a GPU, in GB of 10^9 bytes.")] = 80.0,
    gpu: Annotated[str | None, typer.Option(help="Its name, for its speed, such as H100 or 'A100'.")] = None,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="GPUs of a node.")] = 8,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Pairs an epoch, where the data are not here; they are not looked at.")
    ] = None,
    utilisation: Annotated[
        float, typer.Option(help="Share of the GPU's peak speed that its arithmetic is taken to reach.")
    ] = 0.4,
    run: Annotated[Path | None, typer.Option(help="Folder of a run, to put what it measured beside.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Foretell a run: memory by ZeRO stage, traffic, hours, checkpoints, loader. Needs no GPU, writes only --out.

    The model is built without weights and one step of it run without computing anything. Where it does not fit,
    changed settings are tried until some do. After a run, or with --run, predictions stand beside what it measured.
    """
    from trainer.errors import RunError

    if gpus is not None and gpus < 1:
        raise RunError(f"--gpus {gpus}: give 1 or more")
    if not gpu_memory > 0:
        raise RunError(f"--gpu-memory {gpu_memory:g}: give GB above 0")
    if not 0 < utilisation <= 1:
        raise RunError(f"--utilisation {utilisation:g}: give a share of the peak, above 0 and at most 1")
    check_file(out, overwrite, suffixes=(".json",))
    if recipe.is_dir():
        recipe, run = recipe / "recipe.yaml", run or recipe
    from trainer.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    import model  # noqa: F401  (before torchvision, beside a CPU build of torch)
    from trainer.forecast.actual import compare, comparison_table, read_run
    from trainer.forecast.advice import advice
    from trainer.forecast.forecast import Machine, make_forecast
    from trainer.forecast.page import page, show

    past = None if run is None else read_run(run)
    gpus = gpus or (past.processes if past else None)
    if gpus is None:
        raise RunError("--gpus: not given; say how many GPUs the run is to have" if past is None else
                       f"--gpus: not given, and {run} has no checkpoint that would tell")  # fmt: skip
    machine = Machine(gpus, gpu_memory, gpus_per_node, gpu, utilisation)
    forecast = make_forecast(loaded, machine, samples)
    parts = page(forecast, advice(forecast))
    rows = [] if past is None else compare(forecast, past)
    show([*parts, comparison_table(rows)] if rows else parts)
    if out:
        from shards.commands.outfile import write_json

        compared = {row.what: {"predicted": row.predicted, "actual": row.actual, "note": row.note} for row in rows}
        write_json(out, forecast.as_dict() | ({"compared": compared} if rows else {}))
        typer.echo(f"wrote {out}")
