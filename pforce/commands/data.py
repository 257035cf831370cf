"""`pforce data build` and `pforce experiments`: build data sets, and list the experiments."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.table import Table

from pforce import catalog
from pforce.base.console import DONE, make_console
from pforce.data import DataConfig, Manifest, ensure


def build_data(
    name: Annotated[Literal["openmoji", "fashion-mnist"], tyro.conf.Positional],
    resolution: int = 32,
    destination: Path | None = None,
    source: Path | None = None,
) -> int:
    """Write a data set as webdataset shards with a manifest. Does nothing if they exist already.

    Args:
        name: the data set; openmoji is drawn from the installed package, fashion-mnist is made from its IDX files.
            Nothing is downloaded.
        resolution: height and width of the images, in pixels; fashion-mnist has 32 only.
        destination: folder to write; by default the cache folder ($PFORCE_CACHE or ~/.cache/pforce).
        source: fashion-mnist only: folder of its four IDX files; by default $PFORCE_FASHION_MNIST, else where Debian's
            package dataset-fashion-mnist puts them.
    """
    config = DataConfig(name=name, resolution=resolution, path=str(destination) if destination else None)
    folder = ensure(config, source=source)
    manifest = Manifest.load(folder)
    sizes = f"{manifest.train.samples:,} training and {manifest.validation.samples:,} validation"
    make_console().print(f"{folder}: {sizes} images, {len(manifest.classes)} classes", soft_wrap=True)
    return DONE


def experiments() -> int:
    """List the named experiments."""
    console, table = make_console(), Table()
    wide = console.width >= 80
    for column in ("experiment", *(["module"] if wide else [])):
        table.add_column(column, no_wrap=True)
    table.add_column("what it is")
    for name, function in sorted(catalog.experiments().items()):
        table.add_row(name, *([function.__module__] if wide else []), summary(function))
    console.print(table)
    return DONE


def summary(function: object) -> str:
    """First line of a docstring."""
    return (getattr(function, "__doc__", None) or "").strip().split("\n")[0]
