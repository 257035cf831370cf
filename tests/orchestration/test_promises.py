"""What the storage's file system has to keep, tried by real processes; quotas as the systems' tools print them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pforce.executors.support import sharing
from pforce.orchestration.doctor import cluster, promises


def test_trials_of_all_nodes_at_once(tmp_path):
    every = list(range(sharing.ROUNDS))
    good = {"claims": {"this machine": every, "n1": [], "n2": []}, "locks": {"n1": "held", "n2": "refused"}}
    database = tmp_path.resolve() / "mlflow.db"
    assert [check.state for check in cluster.together(good, tmp_path, database)] == ["ok", "ok"]
    local = {"claims": {**good["claims"], "n2": [3]}, "locks": {"n1": "held", "n2": "held"}}  # Lustre's localflock
    creation, locks = cluster.together(local, tmp_path, database)
    assert "1 were created by more than one" in creation.found
    assert (locks.state, "n2 got a lock that another one held" in locks.found) == ("problem", True)
    without = {"claims": good["claims"], "locks": {"n1": "Function not implemented", "n2": "Function not implemented"}}
    assert "n1 cannot lock: Function not implemented" in cluster.together(without, tmp_path, database)[1].found
    (failed,) = cluster.together({"error": "GetTimeoutError: 45 s"}, tmp_path, database)
    assert failed.state == "problem"


QUOTA = """Disk quotas for user me (uid 1000):
                        Block limits                File limits
     Filesystem   space   quota   limit   grace   files   quota   limit   grace
nas:/export/home 9500000* 9000000 10000000 1767225600  120000       0       0       0
"""
LFS = """Disk quotas for usr me (uid 1000):
      Filesystem  kbytes   quota   limit   grace   files   quota   limit   grace
/lustre/scratch
                 1048576       0 1073741824       -  999000       0 1000000       -
uid 1000 is using default block quota setting
"""


@pytest.mark.parametrize(
    ("said", "key", "state", "told"),
    [
        (QUOTA, "nas:/export/home", "warning", "9.1 GiB of 9.5 GiB; 120,000 files, no limit"),
        (LFS, "/lustre/scratch", "problem", "1.0 GiB of 1,024.0 GiB; 999,000 of 1,000,000 files"),
        ("Disk quotas for user me (uid 1000): none\n", "/dev/sda1", "ok", "none is known"),
    ],
)
def test_a_quota_as_the_tools_print_it(tmp_path, said, key, state, told):
    found = promises.quota(tmp_path, asked=(said, key))
    assert (found.state, told in found.found) == (state, True)


def test_promises_that_a_file_system_breaks(tmp_path):
    """Two folders that are not one: each of two processes creates every file. A lock that its own process takes again,
    as Linux's do: it holds against nobody there."""
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    claims = {name: sharing.claim(str(tmp_path / name), "x") for name in ("one", "other")}
    found = promises.exclusive(claims, tmp_path)
    assert (found.state, "of 20 files 20 were created by more than one" in found.found) == ("problem", True)
    again = {name: sharing.claim(str(tmp_path / "both"), "x") for name in ("one", "other") if _made(tmp_path / "both")}
    assert promises.exclusive(again, tmp_path).state == "ok"
    (descriptor, first), (second, word) = (sharing.lock(str(tmp_path), "lock") for _ in range(2))
    assert first == word == "held"
    for each in (descriptor, second):
        os.close(each)
    words = {"another process": word}
    assert promises.locks(words, tmp_path, tmp_path.resolve() / "mlflow.db").state == "problem"
    assert promises.locks(words, tmp_path, Path("/var/tmp/other.db")).state == "ok"
    assert "Function not implemented" in promises.locks({"n2": "Function not implemented"}, tmp_path, None).found
    (tmp_path / "cut.0").write_bytes(b"who")
    assert "3 of" in promises.whole(sharing.watch(str(tmp_path), "cut"), tmp_path).found


def _made(folder: Path) -> bool:
    folder.mkdir(exist_ok=True)
    return True


@pytest.mark.process
def test_promises_that_this_file_system_keeps(tmp_path):
    found = promises.trials(tmp_path)
    assert found["lock"] == "refused"
    assert found["seen"] is None
    assert promises.exclusive(found["claims"], tmp_path).state == "ok"
    assert list(tmp_path.iterdir()) == []
    missing = promises.trials(tmp_path / "none")
    assert promises.exclusive(missing["claims"], tmp_path).state == "problem"
    assert promises.whole(missing["seen"], tmp_path).state == "problem"
    assert promises.locks({"another process": missing["lock"]}, tmp_path, tmp_path / "x").state == "problem"
