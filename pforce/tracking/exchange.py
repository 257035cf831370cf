"""Finished trials out of a store into records, and back: how results of machines without one another's store merge."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from pforce.records import FORMAT, TrialRecord, merged, read
from pforce.tracking.reading import runs_of
from pforce.tracking.store import PARENT, RunSpec, Tags, Tracker, default_uri

OWN_TAGS = (PARENT, Tags.FINGERPRINT, Tags.KIND, Tags.OPENED)
"""What a store sets itself, or what belongs to one store only."""
IMPORTED = "pforce.imported"
"""Tag of a run that was made from a record: the record's file."""


def exported(tracker: Tracker, sweep: str | None = None) -> list[TrialRecord]:
    """All finished trials of a sweep, or of all, oldest first."""
    found = []
    for name, run in runs_of(tracker, sweep, "trial"):
        tags = run.data.tags
        if run.info.status != "FINISHED" or Tags.FINGERPRINT not in tags:
            continue
        record = TrialRecord(
            format=FORMAT,
            sweep=name,
            name=run.info.run_name,
            fingerprint=tags[Tags.FINGERPRINT],
            params=dict(run.data.params),
            metrics={key: value for key, value in run.data.metrics.items() if math.isfinite(value)},
            # MLflow's own, but for who and from which commit.
            tags={
                key: value
                for key, value in tags.items()
                if key not in OWN_TAGS and (not key.startswith("mlflow.") or key == "mlflow.source.git.commit")
            },
            started=run.info.start_time,
            ended=run.info.end_time,
            step=int(float(run.data.metrics.get("cost/images_seen", 0))),
            files=[],
        )
        found.append(record)
    return sorted(found, key=lambda record: record["ended"])


def imported(
    tracker: Tracker,
    records: Sequence[TrialRecord],
    source: Path,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[int, int]:
    """Make FINISHED runs of the records whose fingerprints no finished run has. (made, there before).

    A record's pictures, relative to `source`, become artifacts where they are there. The runs of one sweep get a
    parent; a run that is killed half made is not FINISHED, and is taken up by the next call.
    """
    there = set(tracker.finished([record["fingerprint"] for record in records]))
    of_sweeps: defaultdict[str, list[TrialRecord]] = defaultdict(list)
    for record in records:
        if record["fingerprint"] not in there:
            of_sweeps[record["sweep"]].append(record)
            there.add(record["fingerprint"])
    made = 0
    for name, missing in of_sweeps.items():
        identity = hashlib.blake2b(f"records of {name}".encode(), digest_size=16).hexdigest()
        tracker.check(name)
        parent = tracker.open_sweep(name, identity, {IMPORTED: source.name})
        for record in missing:
            tags = {**record["tags"], IMPORTED: source.name}
            spec = RunSpec(record["name"], record["fingerprint"], record["params"], tags)
            run_id = tracker.open_trial(parent, spec, started=record["started"])
            tracker.log(run_id, record["metrics"], step=record["step"])
            for file in record["files"]:
                if (source.parent / file).exists():
                    tracker.artifact(run_id, source.parent / file)
            tracker.close(run_id, "FINISHED", ended=record["ended"])
            made += 1
            progress(made)
        tracker.close(parent.run_id, "FINISHED")
    return made, len(records) - made


def store_of(files: Sequence[Path], folder: Path) -> str:
    """A sqlite store below a folder that has the records of these files; its URI. For notebooks, and for a look."""
    uri = default_uri(folder)
    tracker = Tracker(uri, artifacts=folder / "artifacts")
    for path in files:
        imported(tracker, merged([read(path)]), path)
    return uri
