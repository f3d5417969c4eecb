"""The subcommands of `itm shards`, one file a theme."""
