"""Secrets in texts that people see or that are kept: they are masked in one place.

Users put secrets into URIs (user and password, a token as the user, keys in the query) and into variables of the
environment. The latter are left where they are: no message, record, note or file of pforce repeats a variable.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

MASK = "***"
_USER = re.compile(
    r"(?P<scheme>\b[A-Za-z][\w+.-]*://)(?P<user>[^/@:\s]{0,9999})"
    r"(?P<password>:(?:[^\s'\"]{0,9999}|(?:(?!: )[^/@\n]){0,9999}))?@(?=[\w\[])"
)
"""A URI up to its `@`; a password in it may have blanks and quotes, which belong into `%20` and `%27`."""
_NAMED = re.compile(
    r"(?P<name>(?:password|passwd|pwd|secret|secret_key|access_key|account_key|token|api_?key|signature|\bsig|[?&]key))"
    r"(?P<sign>=|['\"]\s*[:=]\s*(?=['\"]))(?P<value>'[^'\n]*'|\"[^\"\n]*\"|[^\s&;,'\")]+)",
    re.IGNORECASE,
)
BUCKETS = ("s3://", "gs://", "gcs://")
"""Schemes whose users are keys."""


_BEARER = re.compile(r"(?P<word>\b(?:Bearer|Basic)\s+)[\w.~+/=-]{8,}")


def mask(text: str) -> str:
    """The text with secrets as `***`: of a URI the password and a user without one, which may be a token; values called
    password, token, secret and the like."""

    def user(found: re.Match[str]) -> str:
        told = found["password"] and found["scheme"] not in BUCKETS
        return f"{found['scheme']}{found['user'] + ':' if told else ''}{MASK}@"

    named = _NAMED.sub(rf"\g<name>\g<sign>{MASK}", _USER.sub(user, text))
    return _BEARER.sub(rf"\g<word>{MASK}", named)


def private_folder(path: Path) -> Path:
    """A folder that only this user can read and write; it is made where it is missing.

    Raises:
        PermissionError: somebody else's folder, a link, or a folder that others may write is there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise PermissionError(f"{path}: is not a folder that only this user may write") from None
        if found.st_mode & 0o077:
            path.chmod(0o700)
    return path


def write_private(path: Path, text: str) -> None:
    """Write a text into a new file that only this user may read. Nothing is written where something is there."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    with os.fdopen(descriptor, "w") as file:
        file.write(text)


def keep_private(path: Path) -> None:
    """Let only this user read a file of his; nothing happens where it is missing or somebody else's."""
    try:
        found = path.lstat()
        if stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid() and found.st_mode & 0o077:
            path.chmod(0o600)
    except FileNotFoundError:
        pass
