"""The files for `ray up`. Oracle: Ray's own validator, after Ray's own defaults."""

from __future__ import annotations

import shlex
from pathlib import Path

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start

from tests.support.manifests import ROOT

FOLDER = ROOT / "cluster" / "ray-up"
CLOUDS = ("aws", "gcp")


def read(cloud: str) -> dict:
    return yaml.safe_load((FOLDER / f"{cloud}.yaml").read_text())


@pytest.mark.parametrize("cloud", CLOUDS)
def test_ray_takes_it(cloud):
    validate_config(prepare_config(read(cloud)))
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(read(cloud) | {"max_worker": 4}))
    with pytest.raises(ValueError, match="max_workers"):
        validate_config(prepare_config(read(cloud) | {"max_workers": 0}))


@pytest.mark.parametrize("cloud", CLOUDS)
def test_addresses_are_internal_and_the_token_is_asked_for(cloud):
    config = prepare_config(read(cloud))
    assert config["provider"]["use_internal_ips"] is True
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert "RAY_AUTH_MODE=token" in config[name][-1]
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "chmod 600 ~/.ray/auth_token" in config["setup_commands"]
    for node in config["available_node_types"].values():
        interfaces = node["node_config"].get("networkInterfaces", [])
        assert not [each for each in interfaces if "accessConfigs" in each], "which is an external address"
    workers = config["available_node_types"]["worker"]
    assert workers["min_workers"] == 1


@pytest.mark.parametrize("cloud", CLOUDS)
@pytest.mark.parametrize("name", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_ray_start_knows_its_options(cloud, name):
    """Oracle: click's own parser of `ray start`; nothing is started."""
    words = shlex.split(read(cloud)[name][-1])
    words = words[words.index("start", words.index("ray")) + 1 :]
    start.make_context("start", [*words])
    assert ("--head" in words) == name.startswith("head")
    assert "--dashboard-host=127.0.0.1" in words or "--head" not in words


@pytest.mark.parametrize("cloud", CLOUDS)
def test_what_it_installs_is_the_lock(cloud):
    text = " ".join(read(cloud)["setup_commands"])
    files = [Path(word.removeprefix("~/pforce/")) for word in text.split() if word.endswith(".txt")]
    assert {path.name for path in files} == {"tools.txt", "requirements.txt", "torch-cuda.txt"}
    assert all((ROOT / path).is_file() for path in files)
