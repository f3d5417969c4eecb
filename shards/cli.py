"""`itm shards ...`: the subcommands, put together."""

import typer

from shards.commands import clean
from shards.commands.convert import convert_app, merge
from shards.commands.demo import demo

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode="markdown", help="Turn data sets into WebDataset shards with a manifest."
)
app.command()(demo)
app.add_typer(convert_app, name="convert")
app.command()(merge)
app.command()(clean.decontaminate)
app.command()(clean.concepts)
