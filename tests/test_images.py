"""uint8 conversion and grids. Oracle: round trips and written-out pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from pforce.images import from_uint8, save_grid, to_uint8


def test_the_conversion_is_one_rounding_and_inverts():
    """The published code has two; ours returns every byte it was given, and clips."""
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(every)), every)
    assert to_uint8(torch.tensor([-1.0, 1.0, -7.0, 7.0, 0.0])).tolist() == [0, 255, 0, 255, 128]


def test_grid_places_images_row_by_row(tmp_path):
    images = torch.stack([torch.full((3, 2, 2), value) for value in (-1.0, 0.0, 1.0)])
    save_grid(images, tmp_path / "a" / "grid.png", columns=2, scale=2, gap=1)
    pixels = np.asarray(Image.open(tmp_path / "a" / "grid.png"))
    assert pixels.shape == (2 * 5 + 1, 2 * 5 + 1, 3)
    assert pixels[1, 1].tolist() == [0, 0, 0]
    assert pixels[1, 6].tolist() == [128, 128, 128]
    assert pixels[6, 1].tolist() == [255, 255, 255]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_no_image(bad):
    """A diverged sampler's output must not become black pixels that are measured."""
    images = torch.zeros(3, 3, 4, 4)
    images[1, 0, 2, 2] = bad
    with pytest.raises(ValueError, match="1 of 3 images hold NaN or infinity"):
        to_uint8(images)
