"""Takes the records of a write-ahead file to MLflow, in order, so that none counts twice.

A kill may come between a delivery and the note of it, so that records are delivered again:

- A run is known by the operation that opened it, kept in its tag `pforce.opened`. The same operation finds its run
  again; should a server have answered a creation too late, so that there are two, the other one is deleted.
- A metric carries the time at which it was made. MLflow's SQL store keeps one row for each (name, time, step, value).
- Tags, artifacts and states are set to the same values again.

A record that the store refuses (not one that it cannot take now) is set aside in a file with the reason.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pforce.tracking.checks import server_fault, transient, why
from pforce.tracking.spool import Entry, Record, Spool
from pforce.tracking.store import METRICS_A_CALL, RunSpec, SweepRun, Tracker

if TYPE_CHECKING:
    from mlflow.entities import Metric

ATTEMPTS = 12
"""Of a record that makes a store fail which answers everything else; then it is set aside."""
PARENT_KEY = ""
"""In place of a trial's fingerprint: the sweep's own run."""

Say = Callable[[str], None]


class Courier:
    """Takes the entries of one file to the store. Raises what the store raises; `offset` is what is done."""

    def __init__(self, tracker: Tracker, spool: Spool, say: Say) -> None:
        self.tracker, self.spool, self.say = tracker, spool, say
        position = spool.position()
        self.offset = int(position.get("offset", spool.start))
        self.experiment_id = str(position.get("experiment", ""))
        self.runs: dict[str, tuple[str, str]] = {key: tuple(run) for key, run in position.get("runs", {}).items()}
        """fingerprint → (run id, operation that opened it) of the runs that are open."""
        self.delivered = 0
        self.refused = 0
        self.refusal = ""
        self.failures = 0
        """How often in turn the entry at `offset` has failed."""

    @property
    def refusals(self) -> Path:
        """The file of what the store refuses."""
        return self.spool.path.with_suffix(".refused")

    def deliver(self) -> bool:
        """One read's worth of entries. False: there are no more."""
        entries = list(self.spool.read(self.offset))
        done = 0
        while done < len(entries):
            window = [entries[done]]
            if "values" in window[0].record:
                for entry in entries[done + 1 :]:
                    if "values" not in entry.record:
                        break
                    window.append(entry)
                self._points(window)
            elif window[0].record:
                self._attempt(window[0].record)
            done += len(window)
            self.offset, self.failures = window[-1].end, 0
            self.delivered += sum(bool(entry.record) for entry in window)
            self.spool.mark({"offset": self.offset, "experiment": self.experiment_id, "runs": self.runs})
        return bool(entries)

    def _points(self, window: list[Entry]) -> None:
        """Metrics of several runs, those of each run in calls of up to METRICS_A_CALL."""
        of_runs: defaultdict[str, list[Record]] = defaultdict(list)
        for entry in window:
            of_runs[entry.record["key"]].append(entry.record)
        for key, records in of_runs.items():
            batch: list[Record] = []
            for record in records:
                if batch and sum(len(one["values"]) for one in (*batch, record)) > METRICS_A_CALL:
                    self._log(key, batch)
                    batch = []
                batch.append(record)
            self._log(key, batch)

    def _log(self, key: str, records: list[Record]) -> None:
        if len(records) == 1:
            self._attempt(records[0])
            return
        try:
            self._log_points(key, records)
        except Exception as error:
            if not self._refuses(error):
                raise
            for record in records:  # one of them; the others are taken
                self._attempt(record)

    def _log_points(self, key: str, records: list[Record]) -> None:
        self.tracker.log_points(self._run(key), [point for record in records for point in _metrics(record)])

    def _attempt(self, record: Record) -> None:
        """Take it to the store, or set it aside where that refuses it twice: once may be a connection that broke."""
        for again in (True, False):
            try:
                self._take(record)
                return
            except Exception as error:
                if not self._refuses(error):
                    raise
                if not again:
                    self._set_aside(record, error)

    def _take(self, record: Record) -> None:
        tracker, key = self.tracker, record["key"]
        match record["op"]:
            case "sweep":
                run = tracker.open_sweep(
                    record["name"], record["identity"], record["tags"], operation=record["id"], started=record["time"]
                )
                self.experiment_id = run.experiment_id
                self.runs[key] = run.run_id, record["id"]
            case "trial":
                spec = RunSpec(record["name"], key, record["params"], record["tags"])
                sweep = SweepRun(self.experiment_id, self._run(PARENT_KEY))
                try:
                    run_id = tracker.open_trial(sweep, spec, operation=record["id"], started=record["time"])
                except Exception as error:
                    # Made, but a parameter refused: what follows has its run all the same.
                    made = tracker.opened_by(self.experiment_id, record["id"]) if not transient(error) else []
                    if made:
                        self.runs[key] = made[0].info.run_id, record["id"]
                    raise
                self.runs[key] = run_id, record["id"]
            case "metrics":
                self._log_points(key, [record])
            case "tags":
                tracker.tag(self._run(key), record["tags"])
            case "artifact":
                tracker.artifact(self._run(key), Path(record["path"]))
            case "close":
                self._close(key, record)
            case other:
                raise TypeError(f"a record of an unknown kind ({other}): another version of pforce wrote it")

    def _close(self, key: str, record: Record) -> None:
        run_id, operation = self.runs[key] if key in self.runs else (self._run(key), "")
        self.tracker.remove_others(self.experiment_id, operation, run_id)
        # A trial's FINISHED is final: a record of an earlier end that comes again changes nothing.
        final = key != PARENT_KEY and record["status"] != "FINISHED" and self.tracker.status(run_id) == "FINISHED"
        if not final:
            self.tracker.close(run_id, record["status"], ended=record["time"])
        self.runs.pop(key, None)

    def _run(self, key: str) -> str:
        try:
            return self.runs[key][0]
        except KeyError:
            raise LookupError("its run is not open, as the store refused to make it") from None

    def _refuses(self, error: Exception) -> bool:
        """Not away, and not able to take it later: found out by asking something else."""
        self.failures += 1
        if transient(error) and not (server_fault(error) and self.failures >= ATTEMPTS):
            return False
        try:
            self.tracker.client.search_experiments(max_results=1)
        except Exception:  # whatever it is: then it is away
            return False
        return True

    def _set_aside(self, record: Record, error: Exception) -> None:
        line = json.dumps({"reason": why(error), "record": record}) + "\n"
        with self.refusals.open("a", encoding="utf-8") as file:
            file.write(line)
        self.refused += 1
        self.refusal = why(error)
        if self.refused == 1:
            self.say(
                f"warning: tracking store {self.tracker.shown} refuses a record ({self.refusal}); it, and any more, "
                f"are kept in {self.refusals}"
            )


def _metrics(record: Record) -> list[Metric]:
    from mlflow.entities import Metric

    return [Metric(name, value, record["time"], record["step"]) for name, value in record["values"].items()]
