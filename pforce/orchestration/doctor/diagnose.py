"""All checks, in the order in which they are shown."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pforce.base.errors import ConfigError
from pforce.executors.support import node
from pforce.executors.support.placement import Node, this_machine
from pforce.orchestration.doctor import cluster, folders, machines, places, promises, software, stores
from pforce.orchestration.doctor.check import Check, checked
from pforce.orchestration.options import tracking_uri_of
from pforce.storage import Storage
from pforce.tracking import TrackingError, local_note, sqlite_path

Told = Callable[[str], None]
HERE: dict[str, Callable[[], Check | list[Check]]] = {
    "place": places.place, "Python": software.python, "packages": software.packages, "GPU": software.gpus,
    "NCCL": software.communication, "attention": software.attention, "torchvision": software.torchvision,
    "process starts": software.process_starts,
}  # fmt: skip
"""Checks of this process and its software, which need to know nothing."""


def diagnose(
    storage: Storage | Path,
    tracking_uri: str | None,
    *,
    ray_address: str | None = None,
    workers: int | None = None,
    told: Told = lambda what: None,
) -> list[Check]:
    """Check this machine, its stores and, with an address, every node of the cluster. Raises nothing.

    Ray is not started: without an address there are only local checks.

    Args:
        storage: storage of sweeps.
        tracking_uri: MLflow store; by default, the database in the storage folder.
        ray_address: address of the cluster.
        workers: number of workers that have to fit.
        told: called with the name of what is checked next.
    """
    place = storage if isinstance(storage, Storage) else Storage.open(storage)
    told("this machine")
    uri = _uri(place, tracking_uri)
    checks = [found for name, check in HERE.items() for found in checked(name, check)]
    told("the stores")
    checks += _of_storage(place, uri)
    checks += checked("MLflow store", lambda: _tracking(place, tracking_uri))
    checks += checked("proxy", lambda: places.proxies(uri, ray_address))
    found: dict[str, Any] | None = None
    if ray_address is None:
        version = importlib.metadata.version("ray")
        text = f"Ray {version}; no cluster was given: only this machine was looked at"
        checks.append(Check("Ray cluster", "ok", text, "--ray-address HOST:PORT (or RAY_ADDRESS) looks at every node."))
    else:
        told(f"the cluster at {ray_address}")
        before = checked("Ray token", cluster.authentication)
        if before[0].state != "problem":
            before += checked("Ray cluster", lambda: cluster.unreachable(ray_address) or [])
        checks += before
        if all(check.state != "problem" for check in before):
            looked: list[dict[str, Any]] = []
            checks += checked("Ray cluster", lambda: _look(ray_address, place.root, looked))
            found = looked[0] if looked else None
    return checks + _of_nodes(found, place, uri, ray_address, workers)


def _uri(place: Storage, given: str | None) -> str | None:
    """URI of the MLflow store; None where there is none, which `_tracking` reports."""
    try:
        return tracking_uri_of(place, given)
    except (ConfigError, TrackingError):
        return None


def _tracking(place: Storage, given: str | None) -> Check:
    try:
        note = local_note(place.root) if given is None and not place.remote else ""
        return stores.tracking(tracking_uri_of(place, given), place.root, note=note)
    except (ConfigError, TrackingError) as error:
        return Check("MLflow store", "problem", str(error), "Give --tracking-uri.")


def _database(uri: str | None) -> Path | None:
    return None if uri is None else sqlite_path(uri)


def _of_storage(place: Storage, uri: str | None) -> list[Check]:
    """Checks of the storage, and of what its file system keeps."""
    checks = checked("storage", lambda: stores.storage_folder(place))
    if place.remote or checks[0].state == "problem":
        return checks
    checks += checked("file system", lambda: folders.file_system(place.root))
    checks += checked("quota", lambda: promises.quota(place.root))

    def tried() -> list[Check]:
        found = promises.trials(place.root)
        return [
            promises.exclusive(found["claims"], place.root),
            promises.whole(found["seen"], place.root),
            promises.locks({"another process": found["lock"]}, place.root, _database(uri)),
        ]

    return checks + checked("file creation", tried)


def _look(address: str, storage: Path, looked: list[dict[str, Any]]) -> list[Check]:
    result = cluster.look(address, storage)
    if isinstance(result, Check):
        return [result]
    looked.append(result)
    return []


def _of_nodes(
    found: dict[str, Any] | None, place: Storage, uri: str | None, address: str | None, workers: int | None
) -> list[Check]:
    """Checks of every node of the cluster, or of this machine alone."""
    own = node.facts(str(place.root))
    facts = {own["host"]: own}
    room = [this_machine()]
    checks: list[Check] = []
    if found is not None and address is not None:
        checks += checked("Ray cluster", lambda: cluster.cluster(found, address))
        answered = [each for each in found["nodes"] if "error" not in each]
        room = [Node(int(each["cpus"]), each["gpus"]) for each in found["nodes"]]
        if answered:
            facts = {each["label"]: each["facts"] for each in answered}
            checks += checked("versions", lambda: machines.versions(facts, own))
            if not place.remote:
                checks += checked("shared storage", lambda: cluster.shared_storage(answered, place.root))
                if (trial := found["together"]) is not None:
                    checks += checked("file locks", lambda: cluster.together(trial, place.root, _database(uri)))
            checks += checked("clocks", lambda: cluster.clocks(answered))
            checks += checked("network", lambda: cluster.rendezvous(answered))
    if workers is not None and (address is None or found is not None):
        checks += checked("workers", lambda: cluster.room(room, workers))
    checks += checked("CPU", lambda: machines.cpus(facts))
    checks += checked("shared memory", lambda: machines.shared_memory(facts))
    everywhere = facts if found is None else {"this machine": own, **facts}
    checks += checked("home", lambda: folders.home(everywhere))
    checks += checked("temporary files", lambda: folders.temporary(everywhere))
    checks += checked("free disk", lambda: machines.disk(facts))
    checks += checked("room for files", lambda: folders.files_left(facts))
    checks += checked("open files", lambda: machines.open_files(facts))
    checks += checked("data cache", lambda: machines.cache(facts))
    return checks


def address_of(ray_address: str | None) -> str | None:
    """Address of the cluster that a sweep would connect to; None where it would start one here."""
    address = ray_address or os.environ.get("RAY_ADDRESS") or None
    return None if address == "local" else address
