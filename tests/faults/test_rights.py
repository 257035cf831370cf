"""Two users of one group share a storage: what one leaves the other goes on with. Real users, by their numbers.

Oracle: the same training by one user, undisturbed; the file modes.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest
import torch

from pforce.data import DataError
from pforce.records.provenance import UNKNOWN, code_in
from pforce.records.row import Row
from pforce.results.stored import storage_frame
from pforce.storage import Storage
from pforce.tracking import Tracker, default_uri
from pforce.training.checkpoint import CheckpointError, saved
from pforce.trial.run import run_trial
from pforce.trial.where import Paths, Where
from tests.training.conftest import DATA, tiny

pytestmark = [
    pytest.mark.process,
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.getuid() != 0, reason="only root can be two users"),
]
ONE, OTHER, GROUP = 23_001, 23_002, 24_000


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that all users reach, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="pforce-rights-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def shared(open_folder: Path) -> Path:
    """A storage of a group: its files stay the group's (setgid)."""
    folder = open_folder / "runs"
    folder.mkdir()
    os.chown(folder, ONE, GROUP)
    folder.chmod(0o2775)
    return folder


def as_user(user: int, home: Path, work: Callable[[], object]) -> None:
    """Do work as a user of the group with umask 002, in a process of his own; its error is raised here."""
    home.mkdir(exist_ok=True)
    os.chown(home, user, user)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups([GROUP])
            os.setgid(user)
            os.setuid(user)
            os.umask(0o002)
            os.environ |= {"HOME": str(home), "PFORCE_CACHE": str(home / "cache")}
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def trained(steps: int, data: Path, storage: Path) -> Row:
    row = run_trial(tiny(steps), Paths(data, Storage.open(storage)), Where(torch.device("cpu")))
    assert isinstance(row, Row)
    return row


def test_two_users_of_a_group_go_on_with_each_others_training(open_folder, shared, tmp_path):
    data = open_folder / "data"
    shutil.copytree(DATA, data)
    undisturbed = trained(9, data, tmp_path / "undisturbed")  # it also imports all that the users need
    Tracker(default_uri(tmp_path), artifacts=tmp_path)
    # MLflow reads files of its package at each start, which others may not reach (an environment below a private one).
    reached = all(folder.stat().st_mode & 0o001 for folder in Path(mlflow.__file__).parents)

    as_user(ONE, open_folder / "one", lambda: trained(5, data, shared))
    if reached:
        as_user(ONE, open_folder / "one", lambda: Tracker(default_uri(shared), artifacts=shared / "artifacts"))

    def go_on() -> None:
        row = trained(9, data, shared)
        assert row.metrics["val/loss"] == undisturbed.metrics["val/loss"]
        if reached:
            Tracker(default_uri(shared), artifacts=shared / "artifacts").client.create_experiment("another's")

    as_user(OTHER, open_folder / "other", go_on)
    (folder,) = shared.glob("trainings/*")
    assert {path.stat().st_uid for path in saved(folder)} == {ONE, OTHER}, "each has left some"
    for path in [path for path in shared.rglob("*") if not path.is_symlink()]:
        found = path.stat()
        assert found.st_gid == GROUP, path
        wanted = 0o2770 if stat.S_ISDIR(found.st_mode) else 0o660
        assert found.st_mode & wanted == wanted, (path, oct(found.st_mode))
        assert not found.st_mode & 0o002, (path, oct(found.st_mode))
    as_user(ONE, open_folder / "one", lambda: storage_frame(Storage.open(shared)))


def test_a_checkpoint_that_may_not_be_read_is_an_error_not_damage(open_folder, shared, tmp_path):
    """To begin anew would hide it, and cost the training."""
    data = open_folder / "data"
    shutil.copytree(DATA, data)
    trained(5, data, tmp_path / "imports")
    as_user(ONE, open_folder / "one", lambda: trained(5, data, shared))
    (folder,) = shared.glob("trainings/*")
    for path in saved(folder):
        (path / "meta.json").chmod(0o600)

    def refused() -> None:
        with pytest.raises((CheckpointError, DataError, PermissionError), match=r"[Pp]ermission denied"):
            trained(9, data, shared)

    as_user(OTHER, open_folder / "other", refused)


def test_a_checkout_that_git_refuses_is_unknown(open_folder):
    """It belongs to another user ("dubious ownership"). New files that are not committed count as changes."""
    checkout = open_folder / "checkout"
    (checkout / "pforce").mkdir(parents=True)
    (checkout / "pforce" / "a.py").write_text("a = 1\n")
    git = ("git", "-c", "user.name=me", "-c", "user.email=me@example.org", "-C", str(checkout))
    for words in (("init", "-q"), ("add", "."), ("commit", "-q", "-m", "first")):
        subprocess.run([*git, *words], check=True)
    clean = code_in(checkout)
    assert set(clean) == {"commit"}
    (checkout / "pforce" / "new.py").write_text("b = 2\n")
    (checkout / "notes.txt").write_text("decides no result")
    new = code_in(checkout)
    assert new["commit"] == clean["commit"]
    assert len(new["changes"]) == 16
    (checkout / "pforce" / "new.py").write_text("b = 3\n")
    assert code_in(checkout)["changes"] != new["changes"]
    for path in (checkout, checkout / ".git"):
        os.chown(path, ONE, ONE)

    def unknown() -> None:
        assert code_in(checkout) == {"commit": UNKNOWN, "changes": UNKNOWN}

    as_user(OTHER, open_folder / "other", unknown)
