"""The rungs that a search's trials have reached, and which of them go on."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from pforce.config import Experiment
from pforce.metrics.names import MetricName
from pforce.orchestration.objectives import mean_of
from pforce.orchestration.rungs import RungSettings, goes_on, rung_of
from pforce.orchestration.sweep import Work
from pforce.records.ledger import Ledger
from pforce.records.row import row_of


class Ladder:
    """The trials of a search that stops some early.

    Args:
        base: experiment whose budget gives the rungs.
        name: name of the search.
    """

    def __init__(self, settings: RungSettings, base: Experiment, name: str, ledger: Ledger) -> None:
        self.settings, self.name, self.ledger = settings, name, ledger
        self.rungs = settings.levels(base)
        """Images seen at the rungs, in order."""
        metric = MetricName.parse(settings.metric)
        self.maximize = metric is not None and metric.larger_is_better
        self.works: dict[int, list[list[Work]]] = {}
        """Trial → its cells at each rung, and its whole cells, each with one per seed."""
        self.at: dict[int, int] = {}
        """Trial → number of the rung that it has or trains for; the number of rungs for whole cells."""
        self.stopped: dict[int, int] = {}
        """Trial that was stopped → images seen at its rung."""

    def take(self, number: int, whole: list[Work]) -> list[Work]:
        """Put a trial on the ladder, as high as the records say that it has begun. Returns its cells there."""
        levels = [[rung_of(work, images, self.settings.metric) for work in whole] for images in self.rungs]
        self.works[number] = [*levels, whole]
        begun = [rung for rung, works in enumerate(self.works[number]) if any(self._row(work) for work in works)]
        self.at[number] = max(begun, default=0)
        return self.works[number][self.at[number]]

    def _row(self, work: Work) -> dict[str, float] | None:
        row = row_of(work.parts, self.ledger)
        return None if row is None else row.metrics

    def values(self, number: int) -> tuple[float, ...]:
        """Means over the seeds at the rungs at which a trial is measured with all of them, in order."""
        found: list[float] = []
        for works in self.works[number][:-1]:
            rows = [self._row(work) for work in works]
            known = [row for row in rows if row is not None]
            if len(known) < len(rows):
                break
            found.append(mean_of(self.settings.metric, known))
        return tuple(found)

    def may_go_on(self, ended: Collection[int]) -> int:
        """Number of trials that are measured at their rung, undecided, and likely to go on; at least 1 where any are.

        Args:
            ended: as in `advance`.
        """
        waiting = sum(at < len(self.values(number)) for number, at in self.at.items() if number not in ended)
        return max(1, waiting // self.settings.reduction) if waiting else 0

    def advance(self, ended: Collection[int], trials: int, *, more: bool) -> tuple[list[int], list[int]]:
        """The trials that go on, which are at their next rung now, and those that stop. While others may still come to
        a rung, only the best of those that are sure to go on does, so that a worker is not idle.

        Args:
            ended: trials whose end the study knows, or that diverged.
            trials: number of trials of the study.
            more: whether further trials will come.
        """
        values = {number: known for number in self.works if (known := self.values(number))}
        go: list[int] = []
        stop: list[int] = []
        for rung in range(len(self.rungs)):
            here = [n for n, at in self.at.items() if at == rung and n not in ended and n not in go and n not in stop]
            waiting = [n for n in here if len(values.get(n, ())) > rung]
            others = tuple(sorted((n, known) for n, known in values.items() if len(known) > rung))
            chosen = [n for n in waiting if self._goes_on(n, others, rung, trials)]
            more = more or len(waiting) < len(here)
            if not more:
                go += chosen
                stop += [n for n in waiting if n not in chosen]
                more = bool(chosen)  # they come to the next rung
            elif not go and len(others) >= self.settings.reduction and chosen:
                sign = -1 if self.maximize else 1
                go.append(min(chosen, key=lambda n: sign * values[n][rung]))
        for number in go:
            self.at[number] += 1
        self.stopped |= {number: self.rungs[self.at[number]] for number in stop}
        return go, stop

    def _goes_on(self, number: int, values: tuple[tuple[int, tuple[float, ...]], ...], rung: int, trials: int) -> bool:
        own = dict(values)[number][: rung + 1]
        if not math.isfinite(own[-1]):
            return False
        return goes_on(
            self.settings, self.name, trials, tuple((n, own if n == number else known) for n, known in values), number,
            rungs=len(self.rungs), maximize=self.maximize,
        )  # fmt: skip

    def cells(self, numbers: Sequence[int]) -> list[Work]:
        """The cells of trials where they are now."""
        return [work for number in numbers for work in self.works[number][self.at[number]]]
