"""The recorded models and arrays of the published implementation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pforce.models import ModelConfig, PatchForcingTransformer, build
from tests.conftest import shared_file


def load_model(name: str) -> PatchForcingTransformer:
    """A recorded checkpoint in our model, every key matched."""
    checkpoint = torch.load(shared_file(f"parity/{name}.ckpt"), weights_only=True)
    p = checkpoint["config"]["params"]
    config = ModelConfig(
        depth=p["depth"],
        width=p["hidden_size"],
        heads=p["num_heads"],
        patch=p["patch_size"],
        image_size=(p["input_size"], p["input_size"]),
        channels=p["in_channels"],
        classes=p["num_classes"],
        difficulty_head=p.get("predict_uncertainty", False),
    )
    model = build(config)
    model.load_state_dict(checkpoint["state_dict"], strict=True)
    return model.eval()


def load_arrays(name: str) -> dict[str, Any]:
    arrays = np.load(shared_file(f"parity/{name}.npz"))
    return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


@pytest.fixture(scope="session")
def small_pft() -> PatchForcingTransformer:
    return load_model("parity_small_pft")


@pytest.fixture(scope="session")
def small_sit() -> PatchForcingTransformer:
    return load_model("parity_small_sit")


@pytest.fixture(scope="session")
def small() -> dict[str, Any]:
    return load_arrays("parity_small")
