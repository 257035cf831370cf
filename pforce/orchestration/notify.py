"""A message to an address of the user's, when a sweep has ended or failed. It is never fatal."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from pforce.base.errors import require

ANSWER_SECONDS = 5.0
"""Seconds that one attempt waits for an answer."""
PAUSES_SECONDS = (1.0, 3.0)
"""Seconds between attempts."""


def require_address(url: str | None) -> None:
    """Raise FieldError unless an address, where there is one, can take a message."""
    allowed = "an http:// or https:// address without a user, blanks or control characters"
    require(url is None or _is_address(url), "notify", shown(url or ""), allowed)


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port  # ValueError for one that is no port
    except ValueError:
        return False
    plain = url.isascii() and url.isprintable() and " " not in url
    return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.username is None and plain


def shown(url: str) -> str:
    """The address for messages: its host alone, as the rest of a webhook's address is a secret."""
    try:
        parts = urlsplit(url)
        return f"{parts.scheme}://{parts.hostname}/…" if parts.hostname and parts.username is None else "its text"
    except ValueError:
        return "its text"


def notify(url: str, message: Mapping[str, Any]) -> str | None:
    """Post a message as JSON, with three attempts. Returns the reason where all of them fail, else None."""
    about = {"Content-Type": "application/json", "User-Agent": "pforce"}
    request = urllib.request.Request(url, json.dumps(dict(message)).encode(), about, method="POST")
    reason = ""
    for pause in (*PAUSES_SECONDS, None):
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_SECONDS):
                return None
        except urllib.error.HTTPError as error:
            reason = f"it answers {error.code}"
            if error.code < 500 and error.code != 429:
                break
        except OSError as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        except (http.client.HTTPException, ValueError) as error:
            reason = type(error).__name__  # its text may repeat the address
        if pause is not None:
            time.sleep(pause)
    return f"{shown(url)} was not notified: {reason}"
