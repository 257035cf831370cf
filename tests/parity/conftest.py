"""The recorded models and arrays of the published implementation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pforce.models import PatchForcingTransformer, load_published
from tests.conftest import shared_file


def load_model(name: str) -> PatchForcingTransformer:
    """A recorded checkpoint in our model."""
    return load_published(shared_file(f"parity/{name}.ckpt"))


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
