"""The `itm` command: its subcommands, and how a user's mistake becomes one line.

Nothing heavy is imported here; a command imports what it needs when it runs, so help is instant.
"""

import sys
from typing import Annotated, Any

import typer
import typer.core

from model.errors import ModelError
from shards.cli import app as shards_app
from shards.errors import DataError
from slurm import commands as slurm_commands
from trainer import commands as run_commands
from trainer import forecast_command, model_commands
from trainer.errors import RunError


class _Commands(typer.core.TyperGroup):
    """Says in one line that a command was interrupted, and what the same command does next."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stopped:
            # whoever has something to go on with says so
            then = str(stopped) or "nothing is half-written; the same command starts anew"
            typer.echo(f"itm: interrupted; {then}", err=True)
            raise typer.Exit(130) from None


commands = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train, fine-tune and evaluate image-text matching models (AAHR, AMSPS).",
)


@commands.callback()
def _launched(
    local_rank: Annotated[int | None, typer.Option("--local_rank", "--local-rank", hidden=True)] = None,
) -> None:
    # deepspeed's launcher gives it to every process, and sets LOCAL_RANK alike
    pass


commands.add_typer(shards_app, name="shards")
commands.command()(forecast_command.plan)
commands.command()(run_commands.train)
commands.command("eval")(run_commands.evaluate)
commands.command()(run_commands.report)
commands.command()(run_commands.recipe)
for command in (model_commands.export, model_commands.embed, model_commands.index, model_commands.search):
    commands.command()(command)
commands.command()(slurm_commands.submit)
commands.command()(slurm_commands.status)


def app() -> None:
    """Run the command line; a user's mistake prints one line on standard error and exits with 1."""
    try:
        commands()
    except (
        DataError,
        ModelError,
        RunError,
        OSError,
    ) as error:  # OSError: a disk that is full, a folder not writable
        typer.echo(f"itm: error: {' '.join(str(error).split())}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    app()
