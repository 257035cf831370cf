"""The image's lock and Dockerfile, read. That the install lines run is `cluster/container/check`'s to show."""

from __future__ import annotations

import fnmatch
import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.manifests import ROOT

FOLDER = ROOT / "cluster" / "container"
DOCKERFILE = (FOLDER / "Dockerfile").read_text().replace("\\\n", " ")
LOCKED = ("requirements.txt", "torch-cuda.txt", "tools.txt")


def pins(name: str) -> dict[str, str]:
    """Package → release of a file of the lock."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^ \\\n]+)", (FOLDER / name).read_text(), re.MULTILINE)
    return {canonicalize_name(package): release for package, release in found}


def test_each_release_has_hashes_and_no_address():
    for name in LOCKED:
        text = (FOLDER / name).read_text()
        lines = [line for line in text.splitlines() if not line.startswith("#")]
        assert len(pins(name)) > 1
        for line in lines:
            assert re.fullmatch(r"[A-Za-z0-9._-]+==[^ ]+ \\|    --hash=sha256:[0-9a-f]{64}( \\)?", line), line
        assert "://" not in text


def test_the_lock_satisfies_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [Requirement(text) for text in project["dependencies"] + project["optional-dependencies"]["postgres"]]
    locked = pins("requirements.txt") | pins("torch-cuda.txt")
    for each in wanted:
        assert each.specifier.contains(locked[canonicalize_name(each.name)]), f"{each}: run cluster/container/lock"


def test_the_variants_differ_in_torch_only():
    assert not set(pins("requirements.txt")) & set(pins("torch-cuda.txt"))
    cpu = pins("torch-cpu.txt")
    assert set(cpu) == {"torch", "torchvision"}
    assert {name: pins("torch-cuda.txt")[name] for name in cpu} == cpu
    assert {name.split("-")[0] for name in pins("torch-cuda.txt")} == {
        "torch",
        "torchvision",
        "triton",
        "nvidia",
        "cuda",
    }


def stages() -> list[list[str]]:
    """Instructions of each stage."""
    lines = [line for line in DOCKERFILE.splitlines() if line and not line.startswith("#")]
    starts = [number for number, line in enumerate(lines) if line.startswith("FROM ")]
    return [lines[start:end] for start, end in zip(starts, [*starts[1:], len(lines)], strict=True)]


def test_nothing_is_installed_at_start_and_nobody_is_root():
    _, last = stages()
    assert last[-2:] == ["USER 10001", 'CMD ["pforce", "--help"]']
    assert not [line for line in last if re.search(r"\b(pip|uv|conda)\b", line)], "the first stage installs"
    assert not [line for line in last if line.startswith("ENTRYPOINT")], "KubeRay and Slurm give their own command"
    (run,) = (line for line in last if line.startswith("RUN "))
    assert "install -d -m 0775 -o 10001 -g 0 /home/pforce" in run, "any uid of group 0 writes HOME"
    environment = " ".join(line for line in last if line.startswith("ENV "))
    assert all(f"{name}=pforce" in environment for name in ("USER", "LOGNAME")), "a uid without a name needs one"


def test_what_is_copied_exists_and_is_let_into_the_context():
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = [rule[1:] for rule in rules if rule.startswith("!")]
    copied = [line.split()[1:-1] for stage in stages() for line in stage if line.startswith("COPY ")]
    for path in (word for words in copied for word in words if not word.startswith(("--", "/opt/venv"))):
        assert list(ROOT.glob(path)), path
        assert [each for each in allowed if path == each or fnmatch.fnmatch(path, f"{each}/*")], path
    assert not [each for each in allowed if each.startswith((".git", "runs", "tests"))]


def test_no_file_of_the_cluster_names_a_place_of_a_machine():
    """Addresses are examples, loopback, or public defaults."""
    names = ("localhost", "127.0.0.1", "0.0.0.0", "HEAD", "ghcr.io", "mlflow.mlflow", "ray-project.github.io")
    public = "|".join((*map(re.escape, names), r"[a-z.]*\.example"))
    for path in sorted(path for path in (ROOT / "cluster").rglob("*") if path.is_file()):
        for address in re.findall(r"[a-z]+://[^\s\"'`<>)]+", path.read_text()):
            scheme, rest = address.split("://", 1)
            if scheme in {"http", "https", "oci"} and not rest.startswith("$"):
                assert re.match(public, rest), f"{Path(path).relative_to(ROOT)}: {address}"
