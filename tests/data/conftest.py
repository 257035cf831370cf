"""The real dataset at 32², built once."""

from __future__ import annotations

from pathlib import Path

import pytest

from pforce.data import openmoji


@pytest.fixture(scope="session")
def openmoji_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "openmoji-32"
    openmoji.build(folder, 32, progress=False)
    return folder
