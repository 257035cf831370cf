"""The figure of the generated images that are nearest to a training image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pforce.base.files import write_bytes
from pforce.metrics.distances import NEAREST
from pforce.metrics.memorisation import SHOWN_PAIRS, SPACES
from pforce.records.ledger import Ledger
from pforce.records.parts import Part
from pforce.results.page import png
from pforce.trial.held_out import arrays_of

Arrays = Mapping[str, NDArray[Any]]


def nearest_of(ledger: Ledger, parts: Iterable[Part]) -> Arrays | None:
    """The arrays of a measurement of memorisation among parts; None where there is none, or its arrays are not kept."""
    for part in parts:
        if part.canonical.get("metric") == NEAREST and (record := ledger.get(part)) is not None:
            return arrays_of(ledger, record)
    return None


def pairs_figure(of: Arrays, detector: str, path: Path) -> None:
    """Draw the eight nearest pairs by features, then the eight nearest by pixels: the generated image above, its
    nearest training image below, with both distances.

    Args:
        of: arrays of `Memorisation.arrays`.
        detector: name of the features' detector.
    """
    names = {"features": f"nearest in features of {detector}", "pixels": "nearest in pixels"}
    with mpl.rc_context({"font.size": 7}):
        figure = Figure(figsize=(1.0 * SHOWN_PAIRS + 0.2, 5.6), layout="constrained")
        parts: Any = figure.subfigures(len(SPACES), 1)
        for part, space in zip(parts, SPACES, strict=True):
            part.suptitle(f"{names[space]}: generated (above), training image (below)", fontsize=8)
            axes = part.subplots(2, SHOWN_PAIRS, squeeze=False)
            for axis in axes.flat:
                axis.set_axis_off()
            for column, (features, pixels) in enumerate(of[f"{space}_pairs"]):
                for axis, side in zip(axes[:, column], ("generated", "training"), strict=True):
                    shown = np.moveaxis(of[f"{space}_{side}"][column], 0, -1)
                    axis.imshow(shown, interpolation="nearest")
                axes[0, column].set_title(f"{features:.3g} features\n{pixels:.3g} pixels", fontsize=6)
        write_bytes(path, png(figure, dpi=140), lasting=False)
