"""The run: recipe, engine, checkpoints, evaluation, report, and the `itm` command."""
