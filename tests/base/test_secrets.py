"""Secrets in texts, and folders and files of one user."""

from __future__ import annotations

import os
import stat

import pytest

from pforce.base.secrets import keep_private, mask, private_folder, write_private


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:pass word@h/db", "postgresql://me:***@h/db"),
        ("postgresql://me:it's\"@h/db", "postgresql://me:***@h/db"),
        ("http://me:a:b@h", "http://me:***@h"),
        ("https://ghp_token@h/x", "https://***@h/x"),
        ("s3://KEY:SECRET@bucket/p", "s3://***@bucket/p"),
        ("h?password=a b&x=1", "h?password=*** b&x=1"),
        ("host=h password='a b' user=u", "host=h password=*** user=u"),
        ('{"token": "abc"}', '{"token": ***}'),
        (f"https://{'x' * 800}@h/x", "https://***@h/x"),
        ("https://h/c?sv=1&sig=ab%2Bc&x=1", "https://h/c?sv=1&sig=***&x=1"),
        ("h?apikey=abc", "h?apikey=***"),
        ("PGPASSWORD=abc psql", "PGPASSWORD=*** psql"),
        ("Authorization: Bearer eyJhbGciOi.abc", "Authorization: Bearer ***"),
        ("AWS_SECRET_ACCESS_KEY=abc", "AWS_SECRET_ACCESS_KEY=***"),
        ("http://127.0.0.1:5000/#/experiments/1", "http://127.0.0.1:5000/#/experiments/1"),
        ("set MLFLOW_TRACKING_PASSWORD: it is missing", "set MLFLOW_TRACKING_PASSWORD: it is missing"),
        ("http://localhost:5000: no answer; ask me@host", "http://localhost:5000: no answer; ask me@host"),
    ],
)
def test_masked(text, shown):
    assert mask(text) == shown


def test_a_folder_of_ones_own(tmp_path):
    """Made with 0700; narrowed where it was readable; refused where others may write, or where a link is."""
    assert stat.S_IMODE(private_folder(tmp_path / "a").stat().st_mode) == 0o700
    (tmp_path / "a").chmod(0o755)
    assert stat.S_IMODE(private_folder(tmp_path / "a").stat().st_mode) == 0o700
    (tmp_path / "a").chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for name in ("a", "link"):
        with pytest.raises(PermissionError, match="only this user may write"):
            private_folder(tmp_path / name)


def test_a_file_of_ones_own(tmp_path):
    before = os.umask(0o022)
    try:
        write_private(tmp_path / "ray" / "token", "abc")
        write_private(tmp_path / "ray" / "token", "another")
    finally:
        os.umask(before)
    token = tmp_path / "ray" / "token"
    assert token.read_text() == "abc"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    token.chmod(0o644)
    keep_private(token)
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    keep_private(tmp_path / "missing")
