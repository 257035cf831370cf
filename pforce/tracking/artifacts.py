"""Files of an MLflow run: copies of files, files made of text, and pictures that runs are compared by."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pforce.base.files import write_bytes
from pforce.images import open_picture
from pforce.tracking.view import View

if TYPE_CHECKING:
    from mlflow import MlflowClient

IMAGES = "images"
"""Folder of a run's pictures with a key and a step."""
PICTURE = re.compile(r"(.+?)[+%]step[+%](\d+)[+%]timestamp")
"""Names of pictures; earlier releases of MLflow have % where later ones have +."""


def write(client: MlflowClient, run_id: str, view: View, *, folder: str | None = None) -> None:
    """Write a view's files and texts into a run's artifacts. Raises the store's error.

    Args:
        folder: URI of the artifacts, where it is known and no server's.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    given = view.files()  # which may draw them
    if not view.texts and not given:  # thousands of cells have none
        return
    with TemporaryDirectory() as made:
        for name, text in view.texts.items():
            write_bytes(Path(made) / name, text if isinstance(text, bytes) else text.encode(), lasting=False)
        files = [*given, *(Path(made) / name for name in view.texts)]
        if folder is not None and files:
            store = get_artifact_repository(folder)
            for path in files:
                store.log_artifact(str(path))
        else:
            for path in files:
                client.log_artifact(run_id, str(path))


def write_pictures(
    client: MlflowClient, run_id: str, view: View, *, fresh: bool, say: Callable[[str], None]
) -> None:  # fmt: skip
    """Write those of a view's pictures that a run does not have yet. One that cannot be read is left out, with a
    message. Raises the store's error.

    Args:
        fresh: whether the run was made just now, so that it has none.
    """
    pictures = view.pictures()
    if not pictures:
        return
    there = [] if fresh else [file.path for file in client.list_artifacts(run_id, IMAGES)]
    known = {match.groups() for path in there if (match := PICTURE.match(path.rpartition("/")[2]))}
    for picture in pictures:
        if (picture.key, str(picture.step)) in known:
            continue
        try:
            with open_picture(picture.path) as opened:
                image = opened.convert("RGB")
        except (OSError, ValueError) as error:
            say(f"{picture.path}: not shown in MLflow: {error}")
            continue
        client.log_image(run_id, image, key=picture.key, step=picture.step, timestamp=picture.time, synchronous=True)
