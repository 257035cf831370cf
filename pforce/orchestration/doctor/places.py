"""Checks of the place where a command runs (Slurm, Kubernetes, a container), and of a proxy in the way."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from urllib.parse import urlsplit

from pforce.base import slurm
from pforce.base.console import duration
from pforce.base.files import read_small
from pforce.base.secrets import mask
from pforce.base.words import counted
from pforce.orchestration.doctor.address import DASHBOARD_PORT
from pforce.orchestration.doctor.check import Check
from pforce.storage import in_ray_job

LEFT_SECONDS = 600.0
"""Seconds of a Slurm job below which it is hardly worth starting a training."""
NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
CONTAINER_FILES = ("/.dockerenv", "/run/.containerenv")
CONTAINER_VARIABLES = ("APPTAINER_CONTAINER", "SINGULARITY_CONTAINER")
LOOPBACK = "127.0.0.1"
GRPC_PROXY = "RAY_grpc_enable_http_proxy"
"""Variable by which Ray's own connections, too, go through a proxy; by default they do not."""


def in_kubernetes() -> bool:
    """Whether this process runs in a pod."""
    return "KUBERNETES_SERVICE_HOST" in os.environ


def in_container() -> bool:
    """Whether this process runs in a container of Docker, Podman or Apptainer."""
    named = any(os.environ.get(name) for name in CONTAINER_VARIABLES)
    return named or any(Path(name).exists() for name in CONTAINER_FILES)


def _of_slurm(left: float | None) -> str:
    job, several = os.environ["SLURM_JOB_ID"], int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
    words = [f"Slurm job {job}"]
    if task := os.environ.get("SLURM_ARRAY_TASK_ID"):
        words.append(f"task {task} of array {os.environ.get('SLURM_ARRAY_JOB_ID', job)}")
    words.append(f"{counted(several, 'node')} ({os.environ.get('SLURM_JOB_NODELIST', '?')})")
    return ", ".join([*words, "no time limit known" if left is None else f"{duration(max(0.0, left))} left"])


def place() -> Check:
    """Report where this process runs, and how long its Slurm job still has."""
    found: list[str] = []
    left = slurm.seconds_left()
    if slurm.in_job():
        found.append(_of_slurm(left))
    elif shutil.which("sbatch"):
        found.append("a machine of Slurm, outside a job")
    if in_kubernetes():
        namespace = f", namespace {read_small(NAMESPACE, 1024).decode().strip()}" if NAMESPACE.is_file() else ""
        found.append(f"a pod of Kubernetes ({os.environ.get('HOSTNAME', '?')}{namespace})")
    elif in_container():
        found.append("a container")
    if in_ray_job():
        found.append("a Ray job")
    text = "; ".join(found) or "a machine of its own: no job of Slurm, no pod, no container"
    if left is not None and left < LEFT_SECONDS:
        return Check("place", "warning", text, "Ask for a longer job (sbatch --time); the same command goes on in it.")
    if not slurm.in_job() and shutil.which("sbatch"):
        return Check("place", "ok", text, "Trainings belong into jobs: cluster/slurm has scripts for sbatch.")
    return Check("place", "ok", text)


def proxy_of(url: str) -> str | None:
    """The proxy through which requests to a URL go, as the environment's variables say; None without one."""
    from requests.utils import get_environ_proxies, select_proxy  # it is slow to import

    found: str | None = select_proxy(url, get_environ_proxies(url, no_proxy=None))
    return found


def proxies(tracking_uri: str | None, ray_address: str | None) -> Check:
    """Check whether requests to MLflow's server, to the cluster's job server and to this machine go through a proxy."""
    asked = [("programs of this machine", f"http://{LOOPBACK}:{DASHBOARD_PORT}")]
    if tracking_uri is not None and tracking_uri.startswith(("http://", "https://")):
        asked.insert(0, ("MLflow", tracking_uri))
    if ray_address not in (None, "auto", "local"):
        head = urlsplit(ray_address if "://" in str(ray_address) else f"//{ray_address}").hostname
        asked.insert(0, ("the cluster's job server", f"http://{head}:{DASHBOARD_PORT}"))
    through = [(what, urlsplit(url).hostname or "", proxy) for what, url in asked if (proxy := proxy_of(url))]
    if not through:
        named = [name for name in os.environ if name.lower().endswith("_proxy") and name.lower() != "no_proxy"]
        text = f"{', '.join(sorted(named))}, but not for what pforce connects to" if named else "none is set"
        return Check("proxy", "ok", text)
    text = "; ".join(f"{what} at {host} through {mask(proxy)}" for what, host, proxy in through)
    missing = ",".join(dict.fromkeys(host for _, host, _ in through))
    grpc = "" if not _grpc_takes_proxies() else f", and Ray's own connections, as {GRPC_PROXY} is set"
    before = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    cure = f"Unless the proxy is meant for them: export no_proxy={f'{before},' if before else ''}{missing}"
    return Check("proxy", "warning", f"requests to {text}{grpc}", cure)


def _grpc_takes_proxies() -> bool:
    return os.environ.get(GRPC_PROXY, "0").lower() in ("1", "true")


def direct(uri: str) -> bool:
    """Whether a server is connected to without a proxy."""
    return not uri.startswith(("http://", "https://")) or proxy_of(uri) is None
