"""The patch grid. Oracles: closed forms on small grids, round trips, and loops written out."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pforce import grid

sizes = st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3))


@given(sizes)
def test_patchify_order_and_round_trip(size):
    """Token n = row·w + column; inside, (row, column, channel) with channel fastest, written out as loops."""
    patch, h, w, channels = size
    images = torch.arange(2 * channels * h * patch * w * patch).float().reshape(2, channels, h * patch, w * patch)
    tokens = grid.patchify(images, patch)
    assert tokens.shape == (2, h * w, patch * patch * channels)
    for n in range(h * w):
        row, column = divmod(n, w)
        cell = images[:, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
        assert torch.equal(tokens[:, n], cell.permute(0, 2, 3, 1).reshape(2, -1))
    assert torch.equal(grid.unpatchify(tokens, patch, h * patch, w * patch), images)


@given(sizes)
def test_to_pixels_and_pool_are_inverse(size):
    patch, h, w, _ = size
    values = torch.rand(2, h * w)
    pixels = grid.to_pixels(values, patch, h * patch, w * patch)
    assert pixels.shape == (2, 1, h * patch, w * patch)
    for pooling in ("mean", "max", "min"):
        torch.testing.assert_close(grid.pool(pixels, patch, pooling), values)


def test_one_value_a_sample_broadcasts():
    assert grid.to_pixels(torch.rand(3), 2, 8, 8).shape == (3, 1, 1, 1)


def test_pooling_by_hand():
    pixels = torch.tensor([[[[1.0, 2.0, 5.0, 6.0], [3.0, 4.0, 7.0, 8.0]]]])
    assert grid.pool(pixels, 2, "mean").tolist() == [[2.5, 6.5]]
    assert grid.pool(pixels, 2, "max").tolist() == [[4.0, 8.0]]
    assert grid.pool(pixels, 2, "min").tolist() == [[1.0, 5.0]]
    with pytest.raises(ValueError, match="median"):
        grid.pool(pixels, 2, "median")


def test_a_patch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="patch 4 does not divide an image of 30×32"):
        grid.grid_size(30, 32, 4)
    with pytest.raises(ValueError, match="3 tokens for a grid of 2×2"):
        grid.unpatchify(torch.zeros(1, 3, 4), 2, 4, 4)


def test_positions_by_their_formula():
    """First half of the channels from the column, second from the row; sin then cos; 10000^(−k/(D/4))."""
    width, h, w = 8, 3, 5
    table = grid.sincos_positions(width, h, w)
    assert table.shape == (1, h * w, width)
    for row in range(h):
        for column in range(w):
            expected = []
            for coordinate in (column, row):
                angles = [coordinate * 10000 ** (-k / 2) for k in range(2)]
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            torch.testing.assert_close(table[0, row * w + column], torch.tensor(expected))
