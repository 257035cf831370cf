"""A probe of a Ray cluster, in a process of its own: `python -m pforce.executors.support.probe ADDRESS STORAGE`.

Ray waits two minutes for a cluster that does not answer and then ends the process; with a wrong token it writes the
reason to stderr only. So the caller reads both outputs and ends the probe. The last line of stdout is JSON.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pforce.base import machine, mounts
from pforce.executors.support import node, sharing, surroundings

SENT = (machine, mounts, node, sharing, surroundings)
"""Modules that are sent to the nodes by value."""
PINGS = 5
NODE_SECONDS = 45.0
"""Seconds for a node to start a process and to answer."""
LOCK_SECONDS = 10.0


def _inspect(inspector: Any, label: str, storage: str, port: int | None) -> dict[str, Any]:
    """Result of the probe of one node."""

    def ask(method: Any, *arguments: Any) -> Any:
        return ray.get(method.remote(*arguments), timeout=NODE_SECONDS)

    found: dict[str, Any] = {"label": label, "facts": ask(inspector.facts, storage)}
    # The error of the difference is at most half of the shortest round trip.
    pings = []
    for _ in range(PINGS):
        before = time.time()
        there = ask(inspector.clock)
        after = time.time()
        pings.append((after - before, there - (before + after) / 2))
    found["round_trip"], found["clock_offset"] = min(pings)
    name, text = f".pforce-doctor-{secrets.token_hex(8)}", secrets.token_hex(16)
    error = ask(inspector.leave, storage, name, text)
    found["storage_error"] = error
    found["storage_shared"] = error is None and node.finds(storage, name, text)
    if error is None:
        ask(inspector.remove, storage, name)
    if port is not None:
        found["connect_seconds"], found["connect_error"] = ask(inspector.connect, ray.util.get_node_ip_address(), port)
    return found


def _together(inspectors: dict[str, Any], storage: str) -> dict[str, Any]:
    """Results of trials that all nodes make at once in a folder that they share with this machine: label → the names
    that it was the first to create, and label → what became of its attempt at a lock that the first one holds."""
    name = f".pforce-doctor-{secrets.token_hex(8)}"
    claims: dict[str, Any] = {}
    locks: dict[str, str] = {}
    try:
        asked = {label: inspector.claim.remote(storage, name) for label, inspector in inspectors.items()}
        claims["this machine"] = sharing.claim(storage, name)
        for label, answer in asked.items():
            claims[label] = ray.get(answer, timeout=NODE_SECONDS)
        for label, inspector in inspectors.items():
            locks[label] = ray.get(inspector.lock.remote(storage, f"{name}.lock"), timeout=NODE_SECONDS)
        own = ThreadPoolExecutor(1).submit(sharing.lock, storage, f"{name}.lock")  # it may hang
        locks["this machine"] = own.result(LOCK_SECONDS)[1]
    except Exception as error:  # a trial that fails is reported, and hides nothing
        lines = str(error).strip().splitlines()
        return {"error": f"{type(error).__name__}: {lines[-1] if lines else ''}"}
    finally:
        sharing.remove(storage, name)
    return {"claims": claims, "locks": locks}


def look(address: str, storage: str) -> dict[str, Any]:
    """Nodes, their resources, and each node's facts. Raises Ray's error where it does not connect."""
    started = time.perf_counter()
    ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
    seconds = time.perf_counter() - started
    for module in SENT:
        ray.cloudpickle.register_pickle_by_value(module)
    actor = ray.remote(num_cpus=0, max_restarts=0)(node.Inspector)
    alive = [each for each in ray.nodes() if each["Alive"]]
    hosts = [each["NodeManagerHostname"] for each in alive]
    nodes, inspectors, sharers = [], [], {}
    for each in alive:
        label = each["NodeManagerHostname"]
        if hosts.count(label) > 1:
            label += f" {each['NodeID'][:6]}"
        where = NodeAffinitySchedulingStrategy(each["NodeID"], soft=False)
        # All at once, as each node has to start a process.
        inspectors.append((each, label, actor.options(scheduling_strategy=where).remote()))
    with socket.create_server(("", 0), backlog=len(alive) + 1) as server:
        for each, label, inspector in inspectors:
            try:
                found = _inspect(inspector, label, storage, server.getsockname()[1])
                if found["storage_shared"]:
                    sharers[label] = inspector
            except Exception as error:  # a bad node is reported and does not hide the others
                lines = str(error).strip().splitlines()
                found = {"label": label, "error": f"{type(error).__name__}: {lines[-1] if lines else ''}"}
            resources = each["Resources"]
            nodes.append({**found, "cpus": resources.get("CPU", 0.0), "gpus": resources.get("GPU", 0.0)})
    dead = sum(not each["Alive"] for each in ray.nodes())
    together = _together(sharers, storage) if sharers else None
    return {"seconds": seconds, "ray": ray.__version__, "nodes": nodes, "dead": dead, "together": together}


def main() -> None:
    """Print the result as JSON, or {"error": …, "kind": …}."""
    address, storage = sys.argv[1:]
    try:
        result = look(address, storage)
    except Exception as error:
        result = {"error": str(error), "kind": type(error).__name__}
    print(json.dumps(result), flush=True)
    os._exit(0)  # Ray's clean-up waits for a cluster that may be gone


if __name__ == "__main__":
    main()
