"""The longer subcommands of `pforce`."""
