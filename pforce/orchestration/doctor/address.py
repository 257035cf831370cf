"""What answers at the address that is given for a Ray cluster, found out within seconds.

Ray itself waits for 14 minutes, in silence, for a port that is not the cluster's own. Its server (the GCS) speaks gRPC,
so one question tells it from others: a call of HTTP/2, which a server of HTTP/1 answers in words.
"""

from __future__ import annotations

import os
import re
import socket
import time
from contextlib import suppress
from typing import Literal, NamedTuple

from pforce.base.foreign import quoted
from pforce.base.secrets import mask
from pforce.orchestration.doctor.check import Check

ASK_SECONDS = 3.0
CLUSTER_PORT, CLIENT_PORT, DASHBOARD_PORT = 6379, 10001, 8265
"""Ray's default ports."""
URL = re.compile(r"https?://", re.IGNORECASE)
UNKNOWN_CALL = 12
"""Status of gRPC for a call that a server does not have."""
Kind = Literal["cluster", "http", "grpc", "other", "silent"]
MOST_BYTES = 1 << 14


class Answer(NamedTuple):
    """What answered: its kind, and the beginning of what it said."""

    kind: Kind
    said: bytes = b""


def _frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    return len(content).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + content


def _question() -> bytes:
    """A call of the GCS whether it is alive, by HTTP/2 (RFC 9113; headers as in RFC 7541, none of them compressed)."""
    fields = ((b":path", b"/ray.rpc.NodeInfoGcsService/CheckAlive"), (b":authority", b"ray"), (b"te", b"trailers"),
              (b"content-type", b"application/grpc"))  # fmt: skip
    headers = b"\x83\x86"  # POST, http
    for name, value in fields:
        headers += b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value
    begin = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(4, 0, 0, b"")
    return begin + _frame(1, 4, 1, headers) + _frame(0, 1, 1, bytes(5))


def _kind(said: bytes, port: int) -> Kind:
    if not said:
        return "silent"
    if said.startswith((b"HTTP/", b"<")):  # some servers answer HTTP/2 by a page alone
        return "http"
    if said[3:4] != b"\x04" or said[5:9] != bytes(4):  # no settings, with which each server of HTTP/2 begins
        return "other"
    status = re.search(rb"grpc-status.(\d{1,2})", said, re.DOTALL)
    code = int(status[1]) if status else None
    # A server that wants a token refuses before it looks at the call, so the number is all that is known of it.
    return "grpc" if code == UNKNOWN_CALL or (port == CLIENT_PORT and code != 0) else "cluster"


def ask(host: str, port: int, timeout: float = ASK_SECONDS) -> Answer:
    """What answers there. OSError where nothing listens."""
    until = time.monotonic() + timeout
    with socket.create_connection((host, port), timeout=timeout) as connection:
        said = b""
        with suppress(OSError):  # late, or it ended the connection: what it has said counts
            connection.sendall(_question())
            while len(said) < MOST_BYTES and not re.search(rb"grpc-status..", said, re.DOTALL):
                connection.settimeout(max(0.01, until - time.monotonic()))
                part = connection.recv(4096)
                if not part or time.monotonic() > until:
                    break
                said += part
    return Answer(_kind(said, port), said)


def encrypted() -> bool:
    """Whether Ray's connections use TLS, so that its servers answer no plain question."""
    return os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")


def _problem(found: str, url: str) -> Check:
    cure = (
        f"Give the cluster's own port, --ray-address HOST:{CLUSTER_PORT} (or RAY_ADDRESS), as `ray start --head` "
        f"prints it; or let the cluster run the command as a job: pforce submit --address {url} -- COMMAND"
    )
    return Check("Ray cluster", "problem", found, cure)


def no_url(address: str) -> Check | None:
    """A problem where a URL is given, as the dashboard and its job server have one; else None."""
    if not URL.match(address):
        return None
    shown = mask(address)
    return _problem(f"{shown} is the dashboard's and its job server's address, not the cluster's own", shown)


def not_the_cluster(address: str, host: str, port: int, answer: Answer) -> Check | None:
    """A problem where something else than a cluster has answered; None for a cluster, and for silence."""
    url = f"http://{host}:{DASHBOARD_PORT}"
    waits = "Ray would wait for it for minutes"
    if answer.kind == "http":
        whose = "the port of Ray's dashboard" if port == DASHBOARD_PORT else "which a cluster's own port never is"
        return _problem(f"an HTTP server answers at {address}, {whose}: {waits}", f"http://{host}:{port}")
    if answer.kind == "grpc":
        what = "the port of Ray's client" if port == CLIENT_PORT else "but is no cluster's own port"
        return _problem(f"a server answers at {address}, {what}: Ray would not connect to it", url)
    if answer.kind == "other":
        said = quoted(answer.said[:40].decode("ascii", "replace"))
        return _problem(f"something else than Ray answers at {address} ({said}): {waits}", url)
    return None
