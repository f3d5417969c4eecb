"""`itm shards ...`: the subcommands, put together."""

import typer

from shards.commands import clean, look, tars
from shards.commands.convert import convert_app, merge
from shards.commands.demo import demo

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode="markdown", help="Turn data sets into WebDataset shards with a manifest."
)
app.add_typer(convert_app, name="convert")
app.command()(merge)
app.command()(tars.index)
app.command("reshard")(tars.reshard)
app.command()(look.verify)
app.command()(look.stats)
app.command()(look.inspect)
app.command()(clean.decontaminate)
app.command()(clean.concepts)
app.command()(demo)
