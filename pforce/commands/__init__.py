"""The subcommands of `pforce`; `pforce.cli` lists them."""
