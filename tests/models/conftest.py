"""What the tests of foreign checkpoints share."""

from __future__ import annotations

import pytest

from pforce.models.published import save_published
from tests.models.published import TINY, read
from tests.models.test_transformer import awake


@pytest.fixture
def tiny(tmp_path):
    """A published file of a tiny PFT, as `(path, checkpoint)`; write the checkpoint again after changing it."""
    path = tmp_path / "tiny.ckpt"
    save_published(awake(TINY), path)
    return path, read(path)
