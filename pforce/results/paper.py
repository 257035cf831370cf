"""The paper's own numbers, for comparison."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from pforce.base.errors import require_one_of

FOLDER = Path(__file__).with_name("paper_tables")


def paper_names() -> list[str]:
    """Names of the paper's tables, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.csv"))


def paper_table(name: str) -> pd.DataFrame:
    """A table of the paper as a frame with its published columns.

    `main` (FID-50k without guidance), `guidance` (with it), `timestep_schedules` and `denoising_schedules` (FID-10k of
    B/2, read off bar charts to within ± `reading_error`), `context_helps` (loss on uncertain patches, read off curves
    at their start, minimum and end), `difficulty` (Pearson's R). FieldError for an unknown name.
    """
    require_one_of("name", name, paper_names())
    # An empty field is missing; the word "none", in the column `guidance`, is a value.
    return pd.read_csv(FOLDER / f"{name}.csv", keep_default_na=False, na_values=[""])
