"""What a sweep records reaches MLflow sooner or later, once, and nobody waits for it.

Every record is first a line of a write-ahead file below the storage folder (`pforce.tracking.spool`). A thread
delivers the lines in order. While the store is away it keeps trying; what is left when the sweep's process ends is
delivered by the next call of the same command.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

from pforce.tracking.checks import TrackingError, short_requests, store_name, why
from pforce.tracking.courier import PARENT_KEY, Courier, Say
from pforce.tracking.spool import leftovers, open_spool
from pforce.tracking.store import RunSpec, Status, Tracker

SPOOL = "spool"
"""Folder below the storage folder."""
FLUSH_SECONDS = 60.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 5.0
OPEN_SECONDS = 10.0
JOIN_SECONDS = 2.0


def flush_seconds() -> float:
    """How long a sweep's end waits for a store that is away: PFORCE_FLUSH_SECONDS, or 60. TrackingError where wrong."""
    text = os.environ.get("PFORCE_FLUSH_SECONDS", str(FLUSH_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise TrackingError(f"PFORCE_FLUSH_SECONDS = {text}: must be a number of seconds, 0 or more")
    return seconds


def _now() -> int:
    return int(time.time() * 1000)


class Delivery:
    """The records of one sweep on their way. Its methods append and return; none waits for the store but `flush`.

    `open_sweep` comes first; trials are named by their fingerprint, from `open_trial` to `close`. As a context
    manager it starts its thread and ends it, and leaves no file where everything was delivered.

    Args:
        folder: of the write-ahead files (`<storage>/spool`).
        identity: of the sweep; names the file.
        say: shows a line to the user.
    """

    def __init__(self, tracker: Tracker, folder: Path, identity: str, say: Say) -> None:
        flush_seconds()  # a wrong one is said now
        self.tracker, self.say = tracker, say
        self.spool = open_spool(folder.absolute(), identity, store_name(tracker.uri))
        self.courier = Courier(tracker, self.spool, say)
        self.identity = identity
        self.changed = threading.Condition()
        self.appended = self.spool.count(self.courier.offset)
        self.progress = time.monotonic()
        self.away_since: float | None = None
        self.problem: str | None = None
        """Why the store does not take records now."""
        self.stopping = False
        self.thread = threading.Thread(target=self._work, name="tracking delivery", daemon=True)

    # --- what is recorded ---------------------------------------------------------------------------------------

    def open_sweep(self, name: str, tags: Mapping[str, str]) -> None:
        """The sweep's own run. Waits, OPEN_SECONDS at most, for the store's answer: TrackingError where it is no."""
        refused = self.courier.refused
        self._append("sweep", PARENT_KEY, name=name, identity=self.identity, tags=dict(tags), id=uuid.uuid4().hex[:12])
        with self.changed:
            self.changed.wait_for(lambda: not self._waiting() or self.problem is not None, OPEN_SECONDS)
        if self.courier.refused > refused:
            raise TrackingError(f"tracking store {self.tracker.shown} cannot be written: {self.courier.refusal}")
        if self.problem is not None:
            self.close_sweep("KILLED")  # should it be delivered later, nothing of this sweep is under way
            raise TrackingError(f"tracking store {self.tracker.shown} cannot be written: {self.problem}")

    def open_trial(self, spec: RunSpec) -> None:
        """A trial's run: made, or an unfinished one taken up again."""
        params = {name: str(value) for name, value in spec.params.items()}
        self._append("trial", spec.fingerprint, name=spec.name, params=params, tags=dict(spec.tags),
                     id=uuid.uuid4().hex[:12])  # fmt: skip

    def log(self, fingerprint: str, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Metrics at a step, made now."""
        self._append("metrics", fingerprint, step=step, values={name: float(value) for name, value in metrics.items()})

    def tag(self, fingerprint: str, tags: Mapping[str, str]) -> None:
        """Set tags; of PARENT_KEY, those of the sweep's own run."""
        self._append("tags", fingerprint, tags=dict(tags))

    def artifact(self, fingerprint: str, path: Path) -> None:
        """A file for the run's artifacts. It has to stay where it is: its path is what waits."""
        self._append("artifact", fingerprint, path=str(path.absolute()))

    def close(self, fingerprint: str, status: Status) -> None:
        """End a trial's run, now."""
        self._append("close", fingerprint, status=status)

    def close_sweep(self, status: Status) -> None:
        """End the sweep's own run, now."""
        self.close(PARENT_KEY, status)

    def _append(self, operation: str, key: str, **fields: object) -> None:
        record = {"op": operation, "key": key, "time": _now(), **fields}
        with self.changed:
            self.appended += 1  # first: a signal that comes between the two must not hide the record
            try:
                self.spool.append(record)
            except TrackingError:
                self.appended -= 1
                raise
            self.changed.notify_all()

    # --- how it gets there ---------------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Records that are in the file only."""
        with self.changed:
            return self._waiting()

    def _waiting(self) -> int:
        return self.appended - self.courier.delivered

    def _work(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.stopping or self._waiting() > 0)
                if self.stopping:
                    if not self.spool.count(self.courier.offset):
                        self.spool.remove()
                    self.spool.close()
                    return
            before = self.courier.delivered
            try:
                self.courier.deliver()
            except Exception as error:  # whatever a store raises: nothing of it may end the sweep
                self._away(why(error))
                with self.changed:
                    self.changed.wait_for(lambda: self.stopping, pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
                continue
            pause = FIRST_PAUSE_SECONDS
            self._back(before)

    def _away(self, reason: str) -> None:
        with self.changed:
            first, self.problem = self.problem is None, reason
            if first:
                self.away_since = time.time()
            waiting = self._waiting()
            self.changed.notify_all()
        if first:
            since = time.strftime("%H:%M:%S", time.localtime(self.away_since))
            self.say(
                f"warning: tracking store {self.tracker.shown} is away since {since}: {reason}. Training goes on; "
                f"{waiting} record(s) wait in {self.spool.path}, and more will"
            )

    def _back(self, before: int) -> None:
        with self.changed:
            waited, since = self.appended - before, self.away_since
            self.progress = time.monotonic()
            self.away_since = self.problem = None
            self.changed.notify_all()
        if since is not None:
            self.say(
                f"tracking store {self.tracker.shown} is back after {time.time() - since:.0f} s; the {waited} "
                "record(s) that waited are delivered"
            )

    def flush(self, seconds: float | None = None, *, limit: float = float("inf")) -> int:
        """Wait until everything is delivered; returns how many records are not.

        Args:
            seconds: longest wait without progress, as for a store that is away; PFORCE_FLUSH_SECONDS by default.
            limit: longest wait in all, seconds.
        """
        patience = flush_seconds() if seconds is None else seconds
        started = time.monotonic()
        with self.changed:
            while self._waiting():
                now = time.monotonic()
                left = min(max(self.progress, started) + patience, started + limit) - now
                if left <= 0:
                    break
                self.changed.wait(min(left, 1.0))
            return self._waiting()

    def finish(self, *, limit: float = float("inf")) -> int:
        """`flush`, and say what is left and what becomes of it. Returns how many records are left."""
        left = self.flush(limit=limit)
        if left:
            self.say(
                f"{left} record(s) are not in {self.tracker.shown} yet; they stay in {self.spool.path}, and the next "
                "call of the same command delivers them"
            )
        return left

    # --- its life ------------------------------------------------------------------------------------------------

    def __enter__(self) -> Delivery:
        # MLflow's own retries would hide that the store is away, and hold up the thread's end.
        self.requests = short_requests()
        self.requests.__enter__()
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        with self.changed:
            self.stopping = True
            self.changed.notify_all()
        self.thread.join(timeout=JOIN_SECONDS)  # one that waits for an answer ends with the process; the file stays
        self.requests.__exit__(None, None, None)


def deliver_leftovers(tracker: Tracker, folder: Path, say: Say) -> None:
    """Deliver what earlier sweeps of this storage folder left behind. TrackingError where the store goes away again.

    Files for another store, and those of sweeps that are running, are left alone.
    """
    store = store_name(tracker.uri)
    for spool in leftovers(folder.absolute(), store):
        try:
            courier = Courier(tracker, spool, say)
            number = spool.count(courier.offset)
            if spool.store != store:
                if number:
                    say(f"{number} record(s) for the tracking store {spool.store} wait in {spool.path}; give it as "
                        "--tracking-uri to deliver them")  # fmt: skip
                continue
            if number:
                say(f"delivering {number} record(s) that an earlier call left in {spool.path}")
            with short_requests():
                while courier.deliver():
                    continue
            spool.remove()
        except TrackingError:
            raise
        except Exception as error:
            raise TrackingError(
                f"tracking store {tracker.shown} cannot be written: {why(error)}. What an earlier call "
                f"left stays in {spool.path}"
            ) from error
        finally:
            spool.close()
