"""Looks at the claims of a table that is shown: recorded in its storage before a reader sees them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

from pforce.base.errors import require
from pforce.records.looks import MOST_SEEDS, Look, note_look, read_looks
from pforce.results.looks import looks_note
from pforce.results.statistics import ENOUGH_SEEDS, Claim, look_of
from pforce.storage import Storage, StorageError

Say = Callable[[str], None]
LATER = "claims are left to the sweep's end and to `pforce report`, as each look at them spends a share of the error"
"""Note of a table that is shown while its sweep runs, and by the mirror."""


def warn(line: str) -> None:
    """Report a problem where there is no console."""
    warnings.warn(line, stacklevel=3)


def require_planned(planned: int | None, seeds: int = ENOUGH_SEEDS) -> None:
    """Raise FieldError unless a table can have this number of planned seeds.

    Args:
        planned: the number that a user states; None states none.
        seeds: number of seeds that the command runs.
    """
    allowed = f"{max(seeds, ENOUGH_SEEDS)} (the seeds of this command) to {MOST_SEEDS}"
    allowed = allowed if seeds > ENOUGH_SEEDS else f"{ENOUGH_SEEDS} to {MOST_SEEDS}"
    require(planned is None or max(seeds, ENOUGH_SEEDS) <= planned <= MOST_SEEDS, "planned_seeds", planned, allowed)


def looks_with(
    storage: Storage, name: str, claims: Sequence[Claim], planned: int, say: Say = warn, *, shown: bool
) -> list[Look]:
    """All looks at a table, with the one at these claims.

    Args:
        name: name of the table's sweep.
        planned: number of planned seeds; that of the first look stays.
        say: function that reports what is wrong with a look's file.
        shown: whether the claims are about to be shown to a reader, so that the look is recorded.
    """
    look = look_of(claims, planned)
    try:
        if shown:
            return note_look(storage, name, look, say)
        there = read_looks(storage, name, say)
    except (StorageError, OSError) as error:
        say(f"this look at the claims of {name} cannot be recorded, so later ones will not count it: {error}")
        return [look] if look.claims else []
    return [*there, look] if look.claims and look.shows_more_than(there) else there


def plan_notes(claims: Sequence[Claim], looks: Sequence[Look]) -> list[str]:
    """The note of a table on its planned seeds and the looks at these claims; none where nothing is compared."""
    here = {pair for claim in look_of(claims, 1).claims for pair in claim}
    touching = [look for look in looks if any(compared & here for compared in look.claims)]
    return [looks_note(touching)] if touching else []
