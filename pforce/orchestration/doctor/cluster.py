"""Checks of a Ray cluster, from the results of `probe`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from pforce.base.errors import ConfigError
from pforce.base.words import counted
from pforce.executors.support.node import connect
from pforce.executors.support.placement import Node, place
from pforce.orchestration.doctor.address import ask, encrypted, no_url, not_the_cluster
from pforce.orchestration.doctor.check import Check, State
from pforce.orchestration.doctor.promises import SHARED, exclusive, locks
from pforce.trial.failures import ClusterError

CONNECT_SECONDS = 3.0
LIMIT_SECONDS = 120.0
"""Most seconds for the probe of a whole cluster."""
SKEW_WARNING, SKEW_PROBLEM = 1.0, 30.0
TOKEN_CURE = (
    "Every node and client needs RAY_AUTH_MODE=token and the cluster's token: copy ~/.ray/auth_token from its head "
    "node (or set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to its file)."
)
REFUSED = "InvalidAuthToken"
"""Word that Ray's client writes to stderr where the token is refused."""


def token_source() -> str | None:
    """Source of Ray's token, in Ray's order of preference; None where there is none."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "RAY_AUTH_TOKEN"
    if path := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return f"RAY_AUTH_TOKEN_PATH ({path})" if Path(path).is_file() else None
    path = str(Path.home() / ".ray" / "auth_token")
    return path if Path(path).is_file() else None


def authentication() -> Check:
    """Check Ray's token on this machine, before any connection."""
    mode, source = os.environ.get("RAY_AUTH_MODE", ""), token_source()
    if mode == "token" and source is None:
        return Check("Ray token", "problem", "RAY_AUTH_MODE=token, but there is no token", TOKEN_CURE)
    if mode == "token":
        return Check("Ray token", "ok", f"RAY_AUTH_MODE=token, token of {source}")
    if source is not None:
        cure = f"If the cluster requires a token, connecting fails. {TOKEN_CURE}"
        return Check("Ray token", "warning", f"a token in {source}, but RAY_AUTH_MODE is not set", cure)
    cure = f"A cluster without a token runs anybody's code. {TOKEN_CURE}"
    return Check("Ray token", "warning", "none, and RAY_AUTH_MODE is not set", cure)


def unreachable(address: str) -> Check | None:
    """A problem where nothing listens at host:port, or something else than a cluster; None where a cluster answers, or
    the address has no port."""
    if (url := no_url(address)) is not None:
        return url
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return None
    host = host.strip("[]")
    # Ray takes a loopback address as that of its node, and may listen on the node's own address only.
    hosts = [host, socket.gethostname()] if host in ("127.0.0.1", "localhost") else [host]
    other: Check | None = None
    for each in hosts:
        try:
            if address.startswith("ray://") or encrypted():
                connect(each, int(port), CONNECT_SECONDS)
                return None
            found = not_the_cluster(address, host, int(port), ask(each, int(port)))
        except OSError as error:
            reason = error.strerror or str(error)
        else:
            if found is None:
                return None
            other = other or found
    if other is not None:
        return other
    cure = ("Check --ray-address (or RAY_ADDRESS), that the head node runs (`ray start --head --port=6379`), and that "
            "no firewall lies between.")  # fmt: skip
    return Check("Ray cluster", "problem", f"nothing answers at {address}: {reason}", cure)


def check_cluster(address: str | None) -> None:
    """Raise ClusterError, with the remedy, where no cluster answers at the address or this machine has no token."""
    if address is None or address in ("local", "auto"):
        return
    for check in (authentication(), unreachable(address)):
        if check is not None and check.state == "problem":
            raise ClusterError(f"{check.name}: {check.found}. {check.cure}")


def look(address: str, storage: Path, *, limit: float = LIMIT_SECONDS) -> dict[str, Any] | Check:
    """Run `probe` and return its result, or the problem where there is no connection."""
    with subprocess.Popen(
        [sys.executable, "-m", "pforce.executors.support.probe", address, str(storage)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as process:
        refused = threading.Event()
        late = threading.Timer(limit, process.kill)
        late.start()
        said: list[str] = []

        def listen() -> None:
            assert process.stderr is not None
            for line in process.stderr:
                said.append(line)
                if REFUSED in line:
                    refused.set()
                    process.kill()  # it would retry for another 20 s

        listener = threading.Thread(target=listen)
        listener.start()
        assert process.stdout is not None
        output = process.stdout.read()
        listener.join()
        process.wait()
        late.cancel()
    if refused.is_set():
        has = f"the one of {source}" if (source := token_source()) and os.environ.get("RAY_AUTH_MODE") else "none"
        return Check("Ray cluster", "problem", f"{address} refuses the token ({has} was sent)", TOKEN_CURE)
    lines = output.strip().splitlines()
    if process.returncode != 0 or not lines:
        last = said[-1].strip() if said else f"exit code {process.returncode}"
        text = f"{address} could not be inspected within {limit:.0f} s: {last}"
        return Check("Ray cluster", "problem", text, "Look at the head node's log: /tmp/ray/session_latest/logs.")
    found: dict[str, Any] = json.loads(lines[-1])
    if "error" in found:
        text = f"{address}: {found['kind']}: {' '.join(found['error'].split())[:400]}"
        cure = TOKEN_CURE if found["kind"] == "AuthenticationError" else _connection_cure(found["error"])
        return Check("Ray cluster", "problem", text, cure)
    return found


def _connection_cure(error: str) -> str:
    if "ersion mismatch" in error:
        return "Install the cluster's versions of Python and Ray on this machine, or the other way round."
    return "Check --ray-address (or RAY_ADDRESS); `ray status` on the head node shows it."


def cluster(found: dict[str, Any], address: str) -> list[Check]:
    """Check the connection, and report nodes that could not be inspected."""
    nodes = found["nodes"]
    cpus, gpus = (sum(node[name] for node in nodes) for name in ("cpus", "gpus"))
    dead = f"; {counted(found['dead'], 'lost node')}" if found["dead"] else ""
    took = f"connected in {found['seconds']:.1f} s{dead}"
    text = f"{address}: {counted(len(nodes), 'node')}, {cpus:g} CPUs, {gpus:g} GPUs, {took}"
    checks = [Check("Ray cluster", "ok", text)]
    for node in nodes:
        if "error" in node:
            cure = "Look at that node's log (/tmp/ray/session_latest/logs), or take it out of the cluster."
            checks.append(Check(f"node {node['label']}", "problem", node["error"], cure))
    return checks


def room(nodes: list[Node], workers: int) -> Check:
    """Check whether that many workers fit at once."""
    try:
        placement = place(workers, nodes=nodes, cpus=None, gpus=None, exactly=True)
    except ConfigError as error:
        return Check("workers", "problem", str(error), "Give fewer --workers, or add nodes to the cluster.")
    gpus = f" and {placement.gpus:g} GPU" if placement.gpus else ""
    return Check("workers", "ok", f"{workers} at once, each on {counted(placement.cpus, 'core')}{gpus}")


def shared_storage(nodes: list[dict[str, Any]], storage: Path) -> Check:
    """Check that the driver can read a file that each node writes."""
    failed = [f"{node['label']} ({node['storage_error']})" for node in nodes if node["storage_error"]]
    apart = [node["label"] for node in nodes if not node["storage_error"] and not node["storage_shared"]]
    cure = "Give --storage a folder that all nodes mount at the same path (NFS), with write permission for the user."
    if failed:
        return Check("shared storage", "problem", f"{storage} on {', '.join(failed)}", cure)
    if apart:
        text = f"{storage} on {', '.join(apart)} is another folder than here: a file written there was not seen here"
        return Check("shared storage", "problem", text, cure)
    everywhere = counted(len(nodes), "node")
    return Check("shared storage", "ok", f"{storage} is the same folder on {everywhere}, and can be written")


def together(found: dict[str, Any], storage: Path, database: Path | None) -> list[Check]:
    """Check what the storage's file system keeps among all nodes at once: who creates a file, and who has a lock.

    Args:
        database: the sqlite database in use; None for other stores.
    """
    if "error" in found:
        return [Check("file creation", "problem", f"{storage}: a trial of all nodes failed: {found['error']}", SHARED)]
    (first, word), *others = found["locks"].items()
    words = dict(others) if word == "held" else {first: word}
    return [exclusive(found["claims"], storage), locks(words, storage, database)]


def clocks(nodes: list[dict[str, Any]]) -> Check:
    """Check the nodes' clock offsets from this machine, which are exact to half a round trip."""
    worst = max(nodes, key=lambda node: abs(node["clock_offset"]))
    skew, half = abs(worst["clock_offset"]), worst["round_trip"] / 2
    text = f"at most {skew:.3f} s apart (± {half:.3f} s)"
    if skew <= SKEW_WARNING + half:
        return Check("clocks", "ok", text)
    cure = "Synchronise the nodes' clocks: run chrony or systemd-timesyncd on each (`timedatectl set-ntp true`)."
    state: State = "problem" if skew > SKEW_PROBLEM + half else "warning"
    return Check("clocks", state, f"{worst['label']} is {worst['clock_offset']:+.1f} s off (± {half:.3f} s)", cure)


def rendezvous(nodes: list[dict[str, Any]]) -> Check:
    """Check TCP connections from every node to a free port of this one, as gloo and NCCL make them."""
    failed = [f"{node['label']} ({node['connect_error']})" for node in nodes if node["connect_seconds"] is None]
    if failed:
        cure = ("Open all ports between the nodes (workers meet at free ports), or set GLOO_SOCKET_IFNAME and "
                "NCCL_SOCKET_IFNAME to the network that connects them.")  # fmt: skip
        return Check("network", "problem", f"no TCP connection to this node from {', '.join(failed)}", cure)
    slowest = max(node["connect_seconds"] for node in nodes)
    all_nodes = counted(len(nodes), "node")
    return Check("network", "ok", f"TCP from {all_nodes} to a free port here: at most {slowest:.4f} s")
