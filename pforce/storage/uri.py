"""URIs of storages: their schemes, their parts, and their form without credentials."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit, urlunsplit

from pforce.storage.errors import StorageError

PARAMETERS = {
    "s3": ("endpoint_override", "scheme", "region", "tls_ca_file_path", "allow_bucket_creation"),
    "gs": ("endpoint_override", "scheme", "retry_limit_seconds"),
}
"""Schemes of buckets, and the parameters (pyarrow's names) that a URI of each may set after its `?`."""
FORMS = "a folder, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX"
VARIABLE = "PFORCE_STORAGE"
RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Variable that Ray sets for the entry point of a job only (ray/dashboard/modules/job/job_supervisor.py)."""


def in_ray_job() -> bool:
    """Whether this process is the entry point of a Ray job, whose working directory is a copy that vanishes with it."""
    return RAY_JOB in os.environ


def default_storage() -> str:
    """The storage where none is given: `$PFORCE_STORAGE`, else `runs`."""
    return os.environ.get(VARIABLE) or "runs"


def absolute(text: str) -> str:
    """The text itself; for a relative folder within a Ray job, that folder below $PFORCE_STORAGE."""
    if "://" in text or Path(text).is_absolute() or not in_ray_job():
        return text
    base = os.environ.get(VARIABLE, "")
    if "://" in base:
        parts = urlsplit(base)
        return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{text}"))
    if Path(base).is_absolute():
        return str(Path(base) / text)
    raise StorageError(
        f"--storage {text}: is relative, and this is a Ray job, whose working directory is a copy that vanishes with "
        f"it: give an absolute folder that all machines share, an s3:// or gs:// URI, or set {VARIABLE} to one"
    )


def split(text: str) -> SplitResult:
    """A URI's parts, without slashes at its end. StorageError for one that is not allowed."""
    parts = urlsplit(text)
    parts = parts._replace(scheme="gs" if parts.scheme == "gcs" else parts.scheme, path=parts.path.rstrip("/"))
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise StorageError(f"--storage file://{parts.netloc}…: names another machine; write file:///FOLDER")
        return parts
    if parts.scheme not in PARAMETERS:
        raise StorageError(f"--storage {parts.scheme}://…: no scheme that is known; give {FORMS}")
    bucket = bucket_of(parts)
    if not bucket or ":" in bucket or "@" in parts.path:
        raise StorageError(
            f"--storage {parts.scheme}://…: names no bucket; write {parts.scheme}://BUCKET/PREFIX, with / in "
            "credentials as %2F, or better leave them to the environment"
        )
    for name, _ in parse_qsl(parts.query, keep_blank_values=True):
        if name not in PARAMETERS[parts.scheme]:
            allowed = ", ".join(PARAMETERS[parts.scheme])
            raise StorageError(f"--storage {shown(parts)}: no parameter {name}; after ? may follow {allowed}")
    return parts


def bucket_of(parts: SplitResult) -> str:
    """The bucket's name."""
    return parts.netloc.rpartition("@")[2]


def shown(parts: SplitResult) -> str:
    """The URI without credentials, for people."""
    known = [(name, value) for name, value in parse_qsl(parts.query) if name in PARAMETERS[parts.scheme]]
    return urlunsplit(parts._replace(netloc=bucket_of(parts), query=urlencode(known, safe=":/")))


def endpoint_of(parts: SplitResult) -> str:
    """The server that the URI names; empty where it is the provider's own."""
    return dict(parse_qsl(parts.query)).get("endpoint_override", "")


def with_endpoint(parts: SplitResult) -> SplitResult:
    """The URI with the server that the environment names added, because processes on other machines have another
    environment."""
    found = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if parts.scheme != "s3" or endpoint_of(parts) or not found:
        return parts
    scheme, separator, host = found.rstrip("/").rpartition("://")
    query = [*parse_qsl(parts.query), ("endpoint_override", host), *([("scheme", scheme)] if separator else [])]
    return parts._replace(query=urlencode(query, safe=":/"))
