"""Trained models as MLflow's models: `mlflow.pyfunc.load_model("models:/ID")` draws images. This module is named in
their files as the loader, so its path and `_load_pyfunc` stay."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from pforce.base.errors import require
from pforce.images import to_uint8
from pforce.sampling import Euler, Sampler, generate
from pforce.trial.source import Source, load_source, write_source

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.entities import Run
    from mlflow.models import ModelSignature

    from pforce.tracking.page import Page

FILE = "model.safetensors"
LOADER = "pforce.tracking.models"
CLASS, SEED = "class", "seed"
BATCH = 64


class DrawnImages:
    """A model whose prediction for a class is an image.

    Args:
        source: the model; its experiment's sampler draws, or 50 Euler steps where it has none.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = source.model.to(self.device).eval()
        self.sampler: Sampler = source.experiment.sampler if source.experiment is not None else Euler()

    @torch.no_grad()
    def predict(self, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None) -> NDArray[Any]:
        """Images (N, H, W, 3) uint8, or latents (N, C, H, W) float32 of a model of latents. Image i starts from the
        noise of (seed, i). FieldError for a table without a column `class`, or another class than the model has.

        Args:
            model_input: table with the column `class`, N rows.
            params: `seed`, by default 0.
        """
        columns = list(getattr(model_input, "columns", ()))
        require(
            CLASS in columns, "model_input", columns, f"a table with a column {CLASS!r}, the class per image to draw"
        )
        labels = torch.from_numpy(np.array(model_input[CLASS], dtype=np.int64))
        most = self.model.config.classes
        fits = bool(((labels >= 0) & (labels < most)).all())
        require(fits, CLASS, labels.tolist()[:8], f"0 … {most - 1} in each row")
        if not len(labels):
            return np.empty((0, *self.model.config.image_size, 3), np.uint8)
        seed = int((params or {}).get(SEED, 0))
        drawn = generate(self.model, self.sampler, labels, seed=seed, batch=BATCH, device=self.device)
        images = torch.cat([each.images.cpu() for each in drawn])
        if self.model.config.channels != 3:
            return np.asarray(images)
        return np.asarray(to_uint8(images).permute(0, 2, 3, 1))


def _load_pyfunc(path: str) -> DrawnImages:
    """The model in a folder that `log_model` has written; MLflow calls this."""
    return DrawnImages(load_source(Path(path) / FILE))


def _signature() -> ModelSignature:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    inputs = Schema([ColSpec(DataType.long, CLASS)])
    return ModelSignature(inputs=inputs, params=ParamSchema([ParamSpec(SEED, DataType.long, 0)]))


def log_model(page: Page, run: Run, name: str, read: Callable[[], Source]) -> bool:
    """Make a run's model one of MLflow's, unless the run has one; returns whether it was made. A model whose files
    could not be written is marked as failed, and made again the next time. Raises the store's error.

    Args:
        name: the model's name: letters, digits and other signs except / : . % " '.
        read: reads the model; called only where it is needed.
    """
    import mlflow
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    client = page.client
    outputs = run.outputs.model_outputs if run.outputs is not None else []
    if any(client.get_logged_model(each.model_id).status == "READY" for each in outputs):
        return False
    source = read()
    seen = source.images_seen or 0
    made = client.create_logged_model(page.experiment_id, name, run.info.run_id, params={"images_seen": str(seen)})
    try:
        with TemporaryDirectory() as folder:
            data, whole = Path(folder) / "data", Path(folder) / "model"
            data.mkdir()
            write_source(source, data / FILE)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*input example", category=UserWarning)
                mlflow.pyfunc.save_model(
                    str(whole), loader_module=LOADER, data_path=str(data), signature=_signature(),
                    mlflow_model=Model(model_id=made.model_id), pip_requirements=[f"pforce=={version('pforce')}"],
                )  # fmt: skip
            client.log_model_artifacts(made.model_id, str(whole))
        client.finalize_logged_model(made.model_id, "READY")
        client.log_outputs(run.info.run_id, [LoggedModelOutput(made.model_id, seen)])
    except BaseException:
        client.finalize_logged_model(made.model_id, "FAILED")
        raise
    return True
