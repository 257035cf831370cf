"""Storages. Oracle: what a real S3 server (moto, over HTTP) holds, as boto3 reads it; real refusals; the clock."""

from __future__ import annotations

import json
import socket
import time
from urllib.parse import quote

import pytest
import torch

from pforce.storage import Storage, StorageError, default_storage, place
from pforce.storage.uri import RAY_JOB
from pforce.training import checkpoint
from pforce.trial.mirror import TrialMirror
from tests.support.buckets import KEYS, Server, s3_server
from tests.support.clock import PATIENCE

pytestmark = pytest.mark.timeout(400)
SECONDS_TO_REFUSE = 15


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PFORCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PFORCE_STORAGE", raising=False)
    monkeypatch.delenv(RAY_JOB, raising=False)


def other_machine(monkeypatch, tmp_path, uri: str) -> Storage:
    """The storage as another machine has it, whose mirror is empty."""
    monkeypatch.setenv("PFORCE_CACHE", str(tmp_path / "other"))
    return Storage.open(uri)


# --- names ------------------------------------------------------------------------------------------------------------


def test_a_folder_is_its_own_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text in ("runs", str(tmp_path / "runs"), f"file://{tmp_path}/runs"):
        storage = Storage.open(text)
        assert (storage.root, storage.uri, storage.remote) == (tmp_path / "runs", str(tmp_path / "runs"), False)
    assert not (tmp_path / "runs").exists(), "opening writes nothing"
    storage.check()
    assert list((tmp_path / "runs").iterdir()) == []
    storage.push("nothing")  # needs no copy: no error
    assert not storage.pull("nothing")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("hdfs://host/x", "no scheme that is known; give a folder, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX"),
        ("s3:/bucket/x", "two slashes"),
        ("s3://", "names no bucket"),
        ("s3://key:a/b@bucket/x", "names no bucket; .* %2F"),
        ("s3://bucket/x?secret_key=s3cret", "no parameter secret_key; after . may follow endpoint_override"),
        ("file://host/x", "another machine"),
    ],
)
def test_what_is_no_storage_is_refused(text, told):
    with pytest.raises(StorageError, match=told) as refused:
        Storage.open(text)
    assert "s3cret" not in str(refused.value)


def test_a_bucket_has_a_mirror_of_its_own_and_shows_no_credentials(tmp_path):
    mine = Storage.open("s3://key:s3cret@bucket/x?endpoint_override=localhost:1&scheme=http")
    assert mine.remote
    assert mine.root.is_relative_to(tmp_path / "cache" / "storage")
    assert str(mine) == "s3://bucket/x?endpoint_override=localhost:1&scheme=http"
    assert "s3cret" not in repr(mine)
    assert Storage.open(mine.uri) == mine
    assert Storage.open("s3://bucket/x/?endpoint_override=localhost:1&scheme=http").root == mine.root
    others = ("s3://bucket/y?endpoint_override=localhost:1", "s3://bucket/x?endpoint_override=localhost:2",
              "gs://bucket/x")  # fmt: skip
    assert len({Storage.open(text).root for text in others} | {mine.root}) == 4


def test_the_default_comes_from_the_environment(monkeypatch):
    assert default_storage() == "runs"
    monkeypatch.setenv("PFORCE_STORAGE", "s3://bucket/x")
    assert default_storage() == "s3://bucket/x"


def test_a_relative_folder_within_a_ray_job(monkeypatch):
    """Its working directory is a copy that vanishes."""
    monkeypatch.setenv(RAY_JOB, "{}")
    with pytest.raises(StorageError, match=r"--storage runs: is relative, and this is a Ray job.*PFORCE_STORAGE"):
        Storage.open("runs")
    monkeypatch.setenv("PFORCE_STORAGE", "also/relative")
    with pytest.raises(StorageError, match="is relative"):
        Storage.open("runs")
    assert Storage.open("/shared/runs").uri == "/shared/runs"
    monkeypatch.setenv("PFORCE_STORAGE", "/shared")
    assert Storage.open("runs").uri == "/shared/runs"
    monkeypatch.setenv("PFORCE_STORAGE", "s3://bucket/x?region=eu-west-1")
    assert Storage.open("runs").uri == "s3://bucket/x/runs?region=eu-west-1"


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["parameters", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "credentials"])
def test_files_go_there_and_come_back(server, tmp_path, monkeypatch, how):
    """The server is named in the URI or in the environment, the credentials in either."""
    prefix = f"some where/{how}"
    uri = server.uri(f"bucket/{quote(prefix)}")
    if how.startswith("AWS"):
        monkeypatch.setenv(how, server.endpoint)
        uri = f"s3://bucket/{quote(prefix)}"
    if how == "credentials":
        for name in KEYS:
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        uri = server.uri(f"bucket/{quote(prefix)}", "key:se%2Fcret@")
    storage = Storage.open(uri)
    storage.check()
    assert server.keys("bucket", prefix) == set(), "the check leaves nothing"
    folder = storage.root / "a" / "b"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "x.bin").write_bytes(bytes(range(256)) * 40_000)  # 10 MB: several parts
    for name in ("y.txt", ".lock", "skipped"):
        (folder / name).write_text(name)
    storage.push("a", skip=("skipped",))
    assert server.keys("bucket", prefix) == {f"{prefix}/a/b/deep/x.bin", f"{prefix}/a/b/y.txt"}
    assert storage.list("a") == ["a/b/deep/x.bin", "a/b/y.txt"]

    other = other_machine(monkeypatch, tmp_path, uri)
    assert other.root != storage.root
    assert other.pull("a/b/deep")
    assert (other.root / "a/b/deep/x.bin").read_bytes() == (folder / "deep" / "x.bin").read_bytes()
    assert not (other.root / "a/b/y.txt").exists()
    assert other.pull("a/b/y.txt")
    assert (other.root / "a/b/y.txt").read_text() == "y.txt"
    assert not other.pull("nothing")
    assert other.read("a/b/y.txt") == b"y.txt"
    assert other.read("a/b/z.txt") is None
    other.delete("a/b/deep")
    assert storage.list("") == ["a/b/y.txt"]


# --- what goes wrong --------------------------------------------------------------------------------------------------


def refusal(uri: str) -> str:
    """What the check says, within its time."""
    started = time.monotonic()
    with pytest.raises(StorageError) as refused:
        Storage.open(uri).check()
    assert time.monotonic() - started < SECONDS_TO_REFUSE * PATIENCE
    return str(refused.value)


def test_a_missing_bucket(server):
    assert "the bucket none does not exist" in refusal(server.uri("none/x"))
    assert "make it, or correct its name" in refusal(server.uri("none/x"))


@pytest.mark.process
def test_no_permission():
    """A user of the server's who may list and not write, and one whom it does not know."""
    with s3_server(INITIAL_NO_AUTH_ACTION_COUNT="4") as strict:
        strict.client().create_bucket(Bucket="bucket")
        iam = strict.client("iam")
        iam.create_user(UserName="reader")
        key = iam.create_access_key(UserName="reader")["AccessKey"]
        listing = {"Effect": "Allow", "Action": "s3:ListBucket", "Resource": "*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [listing]})
        iam.put_user_policy(UserName="reader", PolicyName="list", PolicyDocument=policy)
        secret = quote(key["SecretAccessKey"], safe="")
        told = refusal(strict.uri("bucket/x", f"{key['AccessKeyId']}:{secret}@"))
        assert "no permission for the bucket bucket" in told
        assert "s3:PutObject" in told or "PutObject" in told
        assert key["SecretAccessKey"] not in told
        assert secret not in told
        assert "does not know the credentials" in refusal(strict.uri("bucket/x", "AKIANOBODY:secret@"))


def test_a_server_that_is_not_there(server):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # not listening
        told = refusal(f"s3://bucket/x?endpoint_override=127.0.0.1:{closed.getsockname()[1]}&scheme=http")
    assert "does not answer; check the network and the endpoint" in told


def test_a_server_that_takes_connections_and_is_silent():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        told = refusal(f"s3://bucket/x?endpoint_override=127.0.0.1:{silent.getsockname()[1]}&scheme=http")
    assert "does not answer" in told


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    # /sys takes no folders, whoever asks.
    for folder in (tmp_path / "file" / "runs", "/sys/pforce"):
        assert f"{folder}: cannot be written" in refusal(str(folder))


# --- checkpoints ------------------------------------------------------------------------------------------------------


def saved(mirror: TrialMirror, step: int) -> None:
    """A checkpoint of one tensor that tells its step, and its upload."""
    (mirror.folder / "about.json").parent.mkdir(parents=True, exist_ok=True)
    (mirror.folder / "about.json").write_text("{}")
    path = checkpoint.checkpoint_path(mirror.folder, step)
    tensors = {"ema/step": torch.tensor([step]), "optimizer/step": torch.tensor([step])}
    checkpoint.save(path, tensors, {"identity": "t", "step": step, "images_seen": 16 * step})
    mirror.push(path)


def newest(mirror: TrialMirror) -> int:
    mirror.pull(2**40)
    found = checkpoint.load_newest(mirror.folder, identity="t")
    assert found is not None
    assert int(found[0]["ema/step"]) == found[1]["step"]
    return int(found[1]["step"])


def mirrored(server: Server, name: str) -> tuple[TrialMirror, str]:
    uri = server.uri(f"bucket/{name}")
    return TrialMirror(Storage.open(uri), "trials/t", "about.json"), uri


def test_the_bucket_keeps_the_newest_two(server):
    mirror, _ = mirrored(server, "newest")
    for step in (5, 10, 15, 20):
        saved(mirror, step)
    files = ("meta.json", "moments.safetensors", "state.safetensors")
    names = {f"checkpoints/step_{step:08d}/{file}" for step in (15, 20) for file in files}
    assert server.keys("bucket", "newest/") == {f"newest/trials/t/{name}" for name in names | {"about.json"}}


def test_another_machine_goes_on_at_the_newest_only(server, tmp_path, monkeypatch):
    mirror, uri = mirrored(server, "goes-on")
    for step in (5, 10):
        saved(mirror, step)
    other = TrialMirror(other_machine(monkeypatch, tmp_path, uri), "trials/t", "about.json")
    assert newest(other) == 10
    assert [path.name for path in checkpoint.saved(other.folder)] == ["step_00000010"]
    state = other.folder / "checkpoints" / "step_00000010" / "state.safetensors"
    before = state.stat().st_ino
    assert newest(other) == 10
    assert state.stat().st_ino == before, "what is there is not pulled again"
    state.write_bytes(b"damaged")
    assert newest(other) == 10
    saved(other, 12)
    assert newest(mirror) == 12, "the first machine takes up what the other one did"


@pytest.mark.parametrize("missing", ["meta.json", "moments.safetensors", "state.safetensors"])
def test_a_half_uploaded_checkpoint_is_not_taken(server, tmp_path, monkeypatch, missing):
    mirror, uri = mirrored(server, f"half-{missing}")
    for step in (5, 10):
        saved(mirror, step)
    server.client().delete_object(Bucket="bucket", Key=f"half-{missing}/trials/t/checkpoints/step_00000010/{missing}")
    other = TrialMirror(other_machine(monkeypatch, tmp_path, uri), "trials/t", "about.json")
    assert newest(other) == 5


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(server, tmp_path, monkeypatch):
    """Its tensors are those of another one, as where two machines upload at once."""
    mirror, uri = mirrored(server, "damaged")
    for step in (5, 10):
        saved(mirror, step)
    folder = "damaged/trials/t/checkpoints"
    source = {"Bucket": "bucket", "Key": f"{folder}/step_00000005/state.safetensors"}
    server.client().copy_object(CopySource=source, Bucket="bucket", Key=f"{folder}/step_00000010/state.safetensors")
    other = TrialMirror(other_machine(monkeypatch, tmp_path, uri), "trials/t", "about.json")
    with pytest.warns(UserWarning, match="damaged checkpoint skipped: checkpoints/step_00000010"):
        assert newest(other) == 5


@pytest.mark.process
def test_uploads_fail_and_the_training_goes_on(tmp_path, monkeypatch):
    """The server goes away and comes back empty: a warning, and at the end the newest checkpoint is there."""
    monkeypatch.setattr(place, "PAUSES_SECONDS", (0.1,))
    with s3_server() as first:
        first.client().create_bucket(Bucket="bucket")
        mirror, _ = mirrored(first, "gone")
        saved(mirror, 5)
    with pytest.warns(UserWarning, match=r"checkpoints/step_00000010 is on this machine only: .*does not answer"):
        saved(mirror, 10)
    with pytest.raises(StorageError, match="does not answer"):
        mirror.finish(160)
    with s3_server(port=first.port) as again:
        again.client().create_bucket(Bucket="bucket")
        mirror.finish(160)
        assert f"gone/trials/t/checkpoints/step_{10:08d}/meta.json" in again.keys("bucket")
