"""Kubernetes objects of `cluster/kuberay` as `kubectl kustomize` builds them; no cluster is asked.

`python -m tests.support.manifests FOLDER` writes them, and each pod template in them as a Pod, for tools that do not
know KubeRay's kinds.
"""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
KUBERAY = ROOT / "cluster" / "kuberay"
FOLDERS = ("setup", "standing", *sorted(f"overlays/{path.name}" for path in (KUBERAY / "overlays").iterdir()))
"""All that a user applies."""
Object = dict[str, Any]


def kubectl() -> str | None:
    """Path of kubectl, where there is one."""
    return shutil.which("kubectl")


@functools.cache
def built(folder: str) -> tuple[Object, ...]:
    """The objects of a folder.

    Args:
        folder: below `cluster/kuberay`.
    """
    words = [str(kubectl()), "kustomize", str(KUBERAY / folder)]
    text = subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout
    return tuple(yaml.safe_load_all(text))


def spec_of(thing: Object) -> Object:
    """The RayCluster's spec in a RayJob or a RayCluster."""
    return thing["spec"]["rayClusterSpec"] if thing["kind"] == "RayJob" else thing["spec"]


def templates(thing: Object) -> Iterator[tuple[str, Object]]:
    """(role, pod template) of a RayJob or a RayCluster: head, worker groups, submitter."""
    spec = spec_of(thing)
    yield "head", spec["headGroupSpec"]["template"]
    for group in spec["workerGroupSpecs"]:
        yield group["groupName"], group["template"]
    if thing["kind"] == "RayJob":
        yield "submitter", thing["spec"]["submitterPodTemplate"]


def pods(thing: Object) -> Iterator[Object]:
    """Pods as the templates of an object describe them. Others than Ray's have none."""
    if thing["apiVersion"].startswith("ray.io/"):
        for role, template in templates(thing):
            name = f"{thing['metadata']['name']}-{role}"
            metadata = {**template.get("metadata", {}), "name": name, "namespace": thing["metadata"]["namespace"]}
            yield {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def main(out: Path) -> None:
    """Write one JSON file per object and pod."""
    out.mkdir(parents=True, exist_ok=True)
    for folder in FOLDERS:
        for thing in built(folder):
            for each in (thing, *pods(thing)):
                name = f"{folder.replace('/', '-')}-{each['kind'].lower()}-{each['metadata']['name']}.json"
                (out / name).write_text(json.dumps(each, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
