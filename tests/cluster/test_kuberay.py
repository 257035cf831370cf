"""What `cluster/kuberay` builds: KubeRay's schemas, the rules that its operator checks besides, and those of a cluster
that refuses everything that is not restricted. Oracle: KubeRay's own schemas; the rest is as KubeRay's pages say it.
"""

from __future__ import annotations

import functools
import json
import re
import shlex
import shutil

import jsonschema
import pytest

from pforce.commands.sweep_arguments import parse_sweep
from pforce_experiments.sweeps.ltg_grid import Arguments
from tests.conftest import SHARED
from tests.support.manifests import FOLDERS, KUBERAY, ROOT, built, kubectl, pods, spec_of, templates

pytestmark = pytest.mark.skipif(kubectl() is None, reason="no kubectl here, which builds what is tested")
SCHEMAS = SHARED / "schemas"
OURS = [f"{kind}/{name}" for kind, name in re.findall(r"(overlays)/([a-z-]+)", " ".join(FOLDERS))] + ["standing"]
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}
STORAGE = {"name": "storage", "persistentVolumeClaim": {"claimName": "pforce-storage"}}


def rays(folder: str) -> list[dict]:
    return [thing for thing in built(folder) if thing["apiVersion"] == "ray.io/v1"]


def job(folder: str) -> dict:
    (thing,) = rays(f"overlays/{folder}")
    assert thing["kind"] == "RayJob"
    return thing


def test_each_overlay_builds():
    assert {"overlays/cpu", "overlays/gpu", "overlays/bucket", "overlays/kueue", "overlays/spot"} < set(FOLDERS)
    assert all(built(folder) for folder in FOLDERS)


def refuse_unknown(schema: object) -> object:
    """The schema with all other fields refused, as `kubectl --validate=strict` does."""
    if isinstance(schema, dict):
        inner = {key: refuse_unknown(value) for key, value in schema.items()}
        if "properties" in inner and not schema.get("x-kubernetes-preserve-unknown-fields"):
            inner.setdefault("additionalProperties", False)
        return inner
    return [refuse_unknown(each) for each in schema] if isinstance(schema, list) else schema


@functools.cache
def kuberay(kind: str) -> jsonschema.Draft202012Validator:
    schema = json.loads((SCHEMAS / f"{kind.lower()}s.v1.schema.json").read_text())
    schema["properties"] |= {"apiVersion": {}, "kind": {}, "metadata": {}}
    return jsonschema.Draft202012Validator(refuse_unknown(schema))


@pytest.mark.parametrize("folder", OURS)
@pytest.mark.skipif(not SCHEMAS.is_dir(), reason="KubeRay's schemas are not beside this clone (../shared/schemas)")
def test_kuberays_schemas(folder):
    for thing in rays(folder):
        checker = kuberay(thing["kind"])
        checker.validate(thing)
        broken = json.loads(json.dumps(thing).replace('"rayStartParams"', '"rayStartParam"'))
        assert not checker.is_valid(broken)


@pytest.mark.parametrize("folder", OURS)
def test_what_the_operator_checks_besides(folder):
    for thing in rays(folder):
        assert re.fullmatch(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?", thing["metadata"]["name"])
        spec = spec_of(thing)
        assert spec["authOptions"] == {"mode": "token"}
        assert spec["rayVersion"] == locked("ray"), "the image's own"
        if thing["kind"] == "RayCluster":
            continue
        rules = thing["spec"].get("deletionStrategy", {}).get("deletionRules", [])
        assert bool(rules) != thing["spec"].get("shutdownAfterJobFinishes", False), "one of both, never both"
        assert "ttlSecondsAfterFinished" not in thing["spec"] or not rules
        order, last = ("DeleteWorkers", "DeleteCluster", "DeleteSelf"), {}
        for rule in rules:
            condition = dict(rule["condition"])
            seconds = condition.pop("ttlSeconds")
            (state,) = condition.items()
            before = last.get(state, (-1, 0))
            assert order.index(rule["policy"]) > before[0]
            assert seconds >= before[1], "workers go first, the job last"
            last[state] = order.index(rule["policy"]), seconds
        assert thing["spec"]["backoffLimit"] >= 1
        assert spec.get("enableInTreeAutoscaling") is None, "rules that delete workers do not go with it"


def locked(name: str) -> str:
    text = (ROOT / "cluster" / "container" / "requirements.txt").read_text()
    found = re.search(rf"^{re.escape(name)}(?:\[[^]]*\])?==([^ \\]+)", text, re.MULTILINE)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("folder", OURS)
def test_pods_are_restricted_and_get_what_they_ask(folder):
    for pod in (pod for thing in rays(folder) for pod in pods(thing)):
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] >= 10_000
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        (container,) = spec["containers"]
        assert container["securityContext"] == RESTRICTED
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert set(container["resources"]["limits"]) >= {"cpu", "memory", "ephemeral-storage"}
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert set(volumes) == set(mounted)
        assert {"/tmp", "/home/pforce"} <= set(mounted.values()), "what is written lies outside the image"
        assert all("hostPath" not in volume for volume in volumes.values())
        assert all(
            "valueFrom" in each or each["name"] == "RAY_JOB_STOP_WAIT_TIME_S" for each in container.get("env", ())
        )


@pytest.mark.parametrize("folder", OURS)
def test_a_pod_has_longer_than_its_last_checkpoint_and_shared_memory(folder):
    for thing in rays(folder):
        for role, template in templates(thing):
            if role == "submitter":
                continue
            spec = template["spec"]
            command, name, seconds = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
            assert (ROOT / "cluster" / "container" / command).stat().st_mode & 0o111
            assert name == ("head" if role == "head" else "worker")
            assert 20 < int(seconds) < spec["terminationGracePeriodSeconds"], "a training has 20 s after its signal"
            shm = next(volume["emptyDir"] for volume in spec["volumes"] if volume["name"] == "shm")
            assert shm["medium"] == "Memory"
            group = spec_of(thing)["headGroupSpec"] if role == "head" else spec_of(thing)["workerGroupSpecs"][0]
            gibibytes = int(shm["sizeLimit"].removesuffix("Gi"))
            assert int(group["rayStartParams"]["object-store-memory"]) < gibibytes * 2**30
            assert gibibytes < int(spec["containers"][0]["resources"]["limits"]["memory"].removesuffix("Gi"))


@pytest.mark.parametrize("folder", ["cpu", "gpu", "bucket", "kueue", "spot", "network-policy"])
def test_a_job_runs_a_sweep_that_exists_from_the_image(folder):
    words = shlex.split(job(folder)["spec"]["entrypoint"])
    assert words[:2] == ["python", "sweeps/ltg_grid.py"]
    arguments = parse_sweep(Arguments, words=words[2:])
    assert arguments.preset == "full"
    assert (arguments.options.gpus_per_trial == 1) == (folder == "gpu")


def test_gpus():
    container = job("gpu")["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    assert container["image"].endswith("-cuda")
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_a_storage_is_shared_or_a_bucket():
    settings = {thing["metadata"]["name"]: thing for thing in (*built("setup"), *built("overlays/bucket"))}
    assert settings["pforce-storage"]["spec"]["accessModes"] == ["ReadWriteMany"]
    assert settings["pforce-settings"]["data"]["PFORCE_STORAGE"].startswith("/storage/")
    assert settings["pforce-bucket"]["data"]["PFORCE_STORAGE"].startswith("s3://")
    for folder in ("cpu", "bucket"):
        for role, template in templates(job(folder)):
            if role == "submitter":
                continue
            assert (STORAGE in template["spec"]["volumes"]) == (folder == "cpu")
            config, secret = template["spec"]["containers"][0]["envFrom"]
            assert config["configMapRef"]["name"] == {"cpu": "pforce-settings", "bucket": "pforce-bucket"}[folder]
            assert secret["secretRef"] == {"name": "pforce-secrets", "optional": True}


def test_no_secret_is_written_down():
    assert not [thing for folder in FOLDERS for thing in built(folder) if thing["kind"] == "Secret"]


def test_spot_is_for_workers_only():
    spec = job("spot")["spec"]["rayClusterSpec"]
    assert "affinity" in spec["workerGroupSpecs"][0]["template"]["spec"]
    assert "affinity" not in spec["headGroupSpec"]["template"]["spec"]


def test_policies_let_only_the_dashboard_in():
    policies = {thing["metadata"]["name"]: thing["spec"] for thing in built("overlays/network-policy")[:-1]}
    assert policies["pforce-nothing"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    inner, outer = policies["pforce-among-themselves"]["ingress"]
    assert [port["port"] for port in outer["ports"]] == [8265]
    label = inner["from"][0]["podSelector"]["matchLabels"]
    for _, template in templates(job("network-policy")):
        assert label.items() <= template["metadata"]["labels"].items(), "or the job's pods cannot speak to each other"


def test_components_combine(tmp_path):
    """Oracle: what each component adds, all in one job."""
    shutil.copytree(KUBERAY, tmp_path / "kuberay")
    own = tmp_path / "kuberay" / "overlays" / "mine"
    own.mkdir()
    components = [f"../../components/{name}" for name in ("bucket", "kueue", "spot", "network-policy")]
    (own / "kustomization.yaml").write_text(json.dumps({"resources": ["../gpu"], "components": components}))
    thing = next(each for each in built(str(own)) if each["kind"] == "RayJob")
    worker = thing["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
    assert thing["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "pforce"}
    assert worker["containers"][0]["image"].endswith("-cuda")
    assert {each["key"] for each in worker["tolerations"]} >= {"nvidia.com/gpu", "cloud.google.com/gke-spot"}
    assert STORAGE not in worker["volumes"]
    assert {"RayJob", "NetworkPolicy", "ConfigMap"} == {each["kind"] for each in built(str(own))}
