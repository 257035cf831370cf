"""A tiny published checkpoint, and how one is refused."""

from __future__ import annotations

import re

import pytest
import torch

from pforce.models import ModelConfig
from pforce.models.published import PublishedError, load_published

TINY = ModelConfig(depth=2, width=16, heads=2, patch=2, image_size=(4, 4), channels=3, classes=5)
TINY_SIT = ModelConfig(
    depth=2, width=16, heads=2, patch=2, image_size=(4, 4), channels=3, classes=5, difficulty_head=False
)
ONE_LINE = re.compile(r"[^\n]+")


def read(path):
    return torch.load(path, weights_only=True)


def same(a, b):
    """Names in order, shapes, dtypes and bits."""
    assert list(a) == list(b)
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert torch.equal(a[name], b[name]), name


def refusal(path, **arguments):
    """The message of the error that a file is refused with: one line that starts with its path."""
    with pytest.raises(PublishedError) as caught:
        load_published(path, **arguments)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert ONE_LINE.fullmatch(message)
    assert "weights_only" not in message
    return message
