"""Where the database lies for which no store is given: beside the records, or on a local disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from pforce.tracking import TrackingError, default_database, default_uri, local_note, sqlite_path, store

TABLE = """27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 27 0:44 / {} rw,relatime shared:20 - nfs4 nas:/export/home rw,vers=4.2
"""


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A home on NFS, as the table of mounts says, and that table; /var/tmp is a folder of this test."""
    home, table, local = tmp_path / "home", tmp_path / "mountinfo", tmp_path / "var"
    home.mkdir()
    local.mkdir()
    table.write_text(TABLE.format(home))
    monkeypatch.setattr(store, "LOCAL", local)
    monkeypatch.setenv("PFORCE_CACHE", str(tmp_path / "cache"))
    return home, table


def test_a_local_storage_holds_its_database(tmp_path, network):
    runs = tmp_path / "runs"
    assert default_database(runs, network[1]) == runs.resolve() / "mlflow.db"
    assert local_note(runs, network[1]) == ""


def test_a_network_storage_s_database_lies_in_a_local_cache(tmp_path, network):
    home, table = network
    first, second = (default_database(home / name, table) for name in ("runs", "others"))
    assert first.parent == second.parent == tmp_path / "cache" / "databases"
    assert first != second
    assert first == default_database(home / "x" / ".." / "runs", table), "by the absolute path"
    assert not first.parent.exists(), "nothing is made by asking"
    note = local_note(home / "runs", table)
    assert str(first) in note
    assert "nfs4 (nas:/export/home)" in note
    assert f"pforce mirror --storage {home / 'runs'}" in note
    assert sqlite_path(default_uri(home / "runs", table)) == first


def test_a_database_that_is_in_the_storage_stays_in_use(network):
    home, table = network
    (home / "runs").mkdir()
    (home / "runs" / "mlflow.db").touch()
    assert default_database(home / "runs", table) == home.resolve() / "runs" / "mlflow.db"
    assert local_note(home / "runs", table) == ""


@pytest.mark.parametrize("cache", ["network", "unusable"])
def test_without_a_local_cache_it_lies_below_var_tmp_for_this_user_alone(tmp_path, network, monkeypatch, cache):
    home, table = network
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("PFORCE_CACHE", str(home / "cache" if cache == "network" else tmp_path / "file" / "cache"))
    found = default_database(home / "runs", table)
    assert found.parent.parent == tmp_path / "var"
    assert found.parent.stat().st_mode & 0o777 == 0o700
    found.parent.chmod(0o777)  # as somebody else's would be who waits for it there
    with pytest.raises(TrackingError, match=r"cannot hold a database .*PFORCE_CACHE to a folder of a local disk"):
        default_database(home / "runs", table)


def test_a_machine_without_a_local_disk_has_it_in_the_storage(network):
    home, table = network
    table.write_text("27 1 0:44 / / rw,relatime - 9p none rw,trans=fd\n")
    assert default_database(home / "runs", table) == home.resolve() / "runs" / "mlflow.db"
