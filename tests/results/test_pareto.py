"""The front of two objectives. Oracle: the definition, by brute force over pairs; a case by hand."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from pforce.results.page import png
from pforce.results.pareto import front_figure, on_front


def test_by_hand():
    frame = pd.DataFrame({"d": [5.0, 4.0, 4.0, 3.0, 6.0], "n": [6, 8, 9, 12, 6]})
    assert list(on_front(frame, ["d", "n"])) == [True, True, False, True, False]
    twins = pd.DataFrame({"d": [1.0, 1.0], "n": [2, 2]})
    assert on_front(twins, ["d", "n"]).all()


def test_by_definition():
    generator = np.random.default_rng(0)
    frame = pd.DataFrame(generator.integers(0, 8, (60, 2)), columns=["d", "n"])
    rows = list(frame.itertuples(index=False))
    expected = [not any(b.d <= a.d and b.n <= a.n and (b.d < a.d or b.n < a.n) for b in rows) for a in rows]
    assert list(on_front(frame, ["d", "n"])) == expected


def colours_of(figure: Figure) -> set[tuple[int, ...]]:
    """All colours of a drawn figure."""
    pixels = np.asarray(Image.open(io.BytesIO(png(figure))).convert("RGB")).reshape(-1, 3)
    return {tuple(pixel) for pixel in pixels}


def test_the_figure_is_drawn():
    frame = pd.DataFrame({"sampler": ["euler", "dual_loop", "look_ahead"], "NFE": [6, 12, 24],
                          "fd/openmoji": [6.0, 5.0, 5.5], "front": [True, True, False]})  # fmt: skip
    colours = colours_of(front_figure(frame, "fd/openmoji"))
    assert (0, 114, 178) in colours  # dual_loop's blue, at full strength: it is on the front


def test_the_front_is_always_drawn():
    """The cheapest sampler of the front is far worse than the others: it must not fall out of the picture."""
    frame = pd.DataFrame({"sampler": ["euler"] * 9 + ["dual_loop"], "NFE": [*range(6, 15), 2],
                          "fd/openmoji": [5.0] * 9 + [50.0]})  # fmt: skip
    frame["front"] = on_front(frame, ["fd/openmoji", "NFE"])
    colours = colours_of(front_figure(frame, "fd/openmoji"))
    assert (0, 114, 178) in colours
