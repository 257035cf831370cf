"""A real S3 server on this machine: moto, as a process of its own that speaks HTTP."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.error import URLError

import boto3

from tests.support.ports import free_port

KEYS = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "secret/of+tester", "AWS_DEFAULT_REGION": "us-east-1"}


class Server:
    """An S3 server and what its buckets hold."""

    def __init__(self, port: int) -> None:
        self.port, self.endpoint = port, f"http://127.0.0.1:{port}"

    def client(self, service: str = "s3"):
        return boto3.client(
            service,
            endpoint_url=self.endpoint,
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
            region_name="us-east-1",
        )

    def uri(self, path: str, credentials: str = "") -> str:
        """URI of BUCKET/PREFIX on this server."""
        return f"s3://{credentials}{path}?endpoint_override=127.0.0.1:{self.port}&scheme=http"

    def keys(self, bucket: str, prefix: str = "") -> set[str]:
        """Names of all objects but folders' markers."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        found = {item["Key"] for page in pages for item in page.get("Contents", [])}
        return {key for key in found if not key.endswith("/")}

    def content(self, bucket: str, key: str) -> bytes:
        return self.client().get_object(Bucket=bucket, Key=key)["Body"].read()


@contextmanager
def s3_server(port: int | None = None, **environment: str) -> Iterator[Server]:
    """The server while the block runs. `environment`: settings of moto."""
    server = Server(port or free_port())
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(server.port)],
        env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(300):
            assert process.poll() is None, "the S3 server did not start"
            try:
                urllib.request.urlopen(f"{server.endpoint}/moto-api/", timeout=1).close()
                break
            except URLError:
                time.sleep(0.1)
        yield server
    finally:
        process.kill()
        process.wait()
