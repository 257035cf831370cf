"""Start of Ray: the only module that joins or starts a cluster. It sets Ray's logging and restores signal handlers."""

from __future__ import annotations

import logging
import os
import secrets
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from pforce.base.console import signals_kept
from pforce.base.machine import usable_cores
from pforce.base.secrets import keep_private, private_folder, write_private
from pforce.executors.support.placement import TYPE, Node
from pforce.executors.support.surroundings import SOCKET_BYTES, socket_excess
from pforce.trial.failures import ClusterError

# The state that Tune keeps of an experiment is not used, so its errors (a race with its own clean-up) do not matter.
# A lost worker is reported in one line by the loop.
for _name in ("ray.tune.execution.experiment_state", "ray.tune.execution.tune_controller"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


def start_ray(address: str | None = None) -> list[Node]:
    """Connect to the cluster at `address` or RAY_ADDRESS, or start one here, with the cores that this process may use.
    Returns its nodes. ClusterError where the cluster refuses this driver.

    The dashboard stays on (loopback only): without it, a trial that a scheduler stops leaks its placement group.
    """
    if not ray.is_initialized():
        wanted = _wanted(address)
        try:
            with signals_kept():  # Ray replaces SIGTERM's handler by one that ends without a clean-up
                own = {"num_cpus": usable_cores(), **_private_places()} if wanted == "local" else {}
                ray.init(address=wanted, log_to_driver=False, logging_level=logging.ERROR, **own)
        except PermissionError as error:
            raise ClusterError(
                f"Ray's folder {error}; set RAY_TMPDIR to a short path of a folder of your own"
            ) from error
        except (ConnectionError, RuntimeError, RayError) as error:
            if wanted == "local":
                raise
            raise ClusterError(
                f"the cluster at {wanted} does not take this driver ({error}): is its token here "
                "(RAY_AUTH_MODE=token, and the head's ~/.ray/auth_token or RAY_AUTH_TOKEN), and the same version of "
                f"Ray? `pforce doctor --ray-address {wanted}` tells"
            ) from error
    return _nodes()


def _wanted(address: str | None) -> str:
    return address or os.environ.get("RAY_ADDRESS") or "local"


def _nodes() -> list[Node]:
    """The nodes of the cluster that this process is connected to."""
    found = []
    for resources in (node["Resources"] for node in ray.nodes() if node["Alive"]):
        types = tuple(name.removeprefix(TYPE) for name in resources if name.startswith(TYPE))
        found.append(Node(int(resources.get("CPU", 0)), resources.get("GPU", 0.0), types))
    return found


def _private_places() -> dict[str, Any]:
    """Options of a cluster that is started here: sockets and logs lie in a folder of this user's own. Ray's default one
    is shared by all users of a machine, who could put files into a job's working directory; its token would be
    readable by all of them."""
    token = Path.home() / ".ray" / "auth_token"
    if "RAY_AUTH_TOKEN" not in os.environ and "RAY_AUTH_TOKEN_PATH" not in os.environ and not token.exists():
        write_private(token, secrets.token_hex(32))
    keep_private(token)
    if "RAY_TMPDIR" in os.environ:
        if excess := socket_excess(f"{os.environ['RAY_TMPDIR']}/ray"):
            raise ClusterError(
                f"RAY_TMPDIR={os.environ['RAY_TMPDIR']}: the path of a socket of Ray in it has "
                f"{SOCKET_BYTES + excess} bytes, and at most {SOCKET_BYTES} are possible; set a short path, such as "
                "/tmp/r"
            )
        return {}
    # Short, as sockets' paths have a limit. Ray opens its own folder to everybody, so it lies in one that is not.
    return {"_temp_dir": str(private_folder(Path(f"/tmp/pforce-{os.getuid()}")) / "ray")}


class Cluster:
    """A cluster that this process has joined, or that it has started and will end."""

    def __init__(self, address: str | None) -> None:
        self.ours = not ray.is_initialized()
        self.here = self.ours and _wanted(address) == "local"
        """Whether it was started here, and so has this machine alone."""
        self.nodes = start_ray(address)

    def look(self) -> list[Node]:
        """The nodes that it has now."""
        self.nodes = _nodes()
        return self.nodes

    def leave(self) -> None:
        """End the cluster where this process started it."""
        if self.ours:
            ray.shutdown()


def draining_nodes() -> set[str]:
    """Ids of the nodes that the cluster will lose, as their providers have announced; empty where this release of Ray
    does not say (it has no public function for it, as of 2.60)."""
    from ray._private.state import state

    try:
        return set(state.get_draining_nodes())
    except Exception:  # no such function, or the cluster does not answer, which other calls will tell
        return set()
