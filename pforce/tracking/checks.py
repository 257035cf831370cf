"""Checks of a tracking store before anything is trained: whether it is there and usable, within ten seconds.

MLflow itself would try for minutes: seven times 120 s on a server that does not answer, ten times on a database.
"""

from __future__ import annotations

import logging
import os
import shlex
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pforce.base.errors import InputError
from pforce.base.secrets import mask

SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # with user and password, if they are in it
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",  # its defaults are eight tries of 120 s each
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
}
"""Variables that MLflow reads, some as it is imported, others at each call."""


def set_up() -> None:
    """Set those of MLflow's variables that are not set."""
    for variable, value in SETTINGS.items():
        os.environ.setdefault(variable, value)


# MLflow, which takes a second to import, is imported where a store is opened, so that code that reads records alone
# does not wait for it. It reports usage over the network unless that is disabled before its import.
set_up()

for name, level in {
    "alembic": logging.WARNING,
    "mlflow": logging.WARNING,
    "mlflow.store.db.utils": logging.CRITICAL,  # its errors are raised as well, and reported here with their remedy
}.items():
    logging.getLogger(name).setLevel(level)

CHECK_SECONDS = 10.0
"""Most seconds that a whole check may take."""
ANSWER_SECONDS = 5
"""Most seconds to wait for one answer of a server."""
REQUEST_SECONDS = 10
"""Most seconds to wait for an answer while a sweep runs, and so until a lost server is noticed."""
LOCK_SECONDS = 7.0
"""Most seconds to wait for a sqlite database that another process writes to; MLflow's own writes take milliseconds."""
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
DRIVERS = {"postgresql:": "pip install 'pforce[postgres]'", "mysql:": "pip install pymysql, and use mysql+pymysql://…"}


class TrackingError(InputError, RuntimeError):
    """The tracking store cannot be used. The message gives the store and the remedy, with passwords masked."""

    def __init__(self, message: str) -> None:
        super().__init__(mask(message))


def store_name(uri: str) -> str:
    """The name that distinguishes stores: the URI without user, password and options."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")


def is_server(uri: str) -> bool:
    """Whether the URI is an MLflow server's address, not a database or folder."""
    return uri.startswith(("http://", "https://"))


def is_database(uri: str) -> bool:
    """Whether the URI is a database that MLflow opens itself."""
    return uri.partition(":")[0].partition("+")[0] in DATABASES


@contextmanager
def short_requests() -> Iterator[None]:
    """Limit MLflow's requests in the block to REQUEST_SECONDS without retries, because the caller retries itself."""
    wanted = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": str(REQUEST_SECONDS)}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def within(seconds: float, function: Callable[[], None], late: str) -> None:
    """Call a function in a thread. TrackingError with the text `late` where it takes longer than `seconds`; its own
    errors are passed on.

    It is a thread because a name server, a handshake or a lock may take longer than any timeout that can be passed to
    them.
    """
    errors: list[BaseException] = []

    def call() -> None:
        try:
            function()
        except BaseException as error:  # raised in the caller below
            errors.append(error)

    thread = threading.Thread(target=call, name="check of the tracking store", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TrackingError(late)
    if errors:
        raise errors[0]


def check_store(uri: str) -> None:
    """Raise TrackingError, within CHECK_SECONDS, where the store does not answer, refuses access, or has another
    schema."""
    if is_server(uri):
        late = f"tracking server {uri} did not answer within {CHECK_SECONDS:.0f} s: {_SERVER_CURE}"
        within(CHECK_SECONDS, lambda: _check_server(uri), late)
    elif uri.startswith("sqlite:"):
        _check_sqlite(uri)
    elif is_database(uri):
        late = (
            f"tracking database {uri} did not answer within {CHECK_SECONDS:.0f} s: check host and port "
            "(--tracking-uri), and that it runs"
        )
        within(CHECK_SECONDS, lambda: _check_database(uri), late)


def check_writable(uri: str) -> None:
    """Raise TrackingError, within LOCK_SECONDS, where a sqlite database is locked or read-only. Other stores are not
    checked here."""
    path = sqlite_path(uri)
    if path is None or not path.exists():
        return
    try:
        with _sqlite(path) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.rollback()
    except sqlite3.Error as error:
        raise _sqlite_error(uri, path, error) from error


_SERVER_CURE = "check that it runs there (mlflow server), the address (--tracking-uri), and the network"


def _check_server(uri: str) -> None:
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    endpoint = "/api/2.0/mlflow/experiments/search"
    try:
        answer = http_request(
            get_default_host_creds(uri), endpoint, "GET",
            params={"max_results": 1}, timeout=ANSWER_SECONDS, max_retries=0, raise_on_status=False,
        )  # fmt: skip
    except Exception as error:  # every layer below raises its own errors
        raise TrackingError(f"tracking server {uri}: {why(error)}. {_SERVER_CURE.capitalize()}.") from error
    if answer.status_code in (401, 403):
        given = "MLFLOW_TRACKING_USERNAME" in os.environ or "@" in uri
        what = "refuses this user and password" if given else "wants a user and a password"
        raise TrackingError(
            f"tracking server {uri} {what} (HTTP {answer.status_code}): set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD"
        )
    if answer.status_code != 200 or not answer.text.lstrip().startswith("{"):
        raise TrackingError(
            f"{uri} answers, but not as an MLflow server does (HTTP {answer.status_code} for {endpoint}): check "
            "--tracking-uri, and the server's own log"
        )


def sqlite_path(uri: str) -> Path | None:
    """The file of a sqlite database; None for one in memory, and for other stores."""
    if not uri.startswith("sqlite:"):
        return None
    import sqlalchemy  # comes with MLflow, without which the rest of pforce works

    name = sqlalchemy.make_url(uri).database
    return None if not name or name == ":memory:" else Path(name)


def sqlite_uri(path: Path) -> str:
    """The URI of a sqlite database for any path, as `?` and `%41` have a meaning in URIs.

    TrackingError where SQLAlchemy has none for it: before 2.1, for a path with a `?`.
    """
    import sqlalchemy

    uri = sqlalchemy.URL.create("sqlite", database=str(path)).render_as_string(hide_password=False)
    if sqlite_path(uri) != path:
        raise TrackingError(
            f"{path}: SQLAlchemy {sqlalchemy.__version__} cannot open a database below a folder of this name; give "
            "another folder, or pip install 'sqlalchemy>=2.1'"
        )
    return uri


def _sqlite(path: Path) -> closing[sqlite3.Connection]:
    return closing(sqlite3.connect(path, timeout=LOCK_SECONDS, isolation_level=None))


def _sqlite_error(uri: str, path: Path, error: sqlite3.Error) -> TrackingError:
    text = str(error)
    if "locked" in text:
        return TrackingError(
            f"tracking database {uri} is locked: another process has held its write lock for {LOCK_SECONDS:.0f} s. "
            f"`fuser -v {shlex.quote(str(path))}` shows which one; end it, or wait for it"
        )
    if "readonly" in text or (isinstance(error, sqlite3.OperationalError) and "unable to open" in text):
        return TrackingError(
            f"tracking database {uri} cannot be written ({text}): check the permissions of {path} and of its folder"
        )
    return TrackingError(f"tracking database {uri} cannot be used: {text}. Check the URI (--tracking-uri)")


def _check_sqlite(uri: str) -> None:
    path = sqlite_path(uri)
    if path is None or not path.exists() or not path.stat().st_size:
        return
    try:
        with _sqlite(path) as connection:
            there = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchall()
            revisions = connection.execute("SELECT version_num FROM alembic_version").fetchall() if there else []
    except sqlite3.Error as error:
        raise _sqlite_error(uri, path, error) from error
    _check_schema(uri, [revision for (revision,) in revisions])


def _check_database(uri: str) -> None:
    import sqlalchemy
    from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

    kind = uri.partition(":")[0].partition("+")[0]
    limit = {"connect_timeout": ANSWER_SECONDS} if kind in ("postgresql", "mysql") else {}
    try:
        engine = sqlalchemy.create_engine(uri, connect_args=limit, poolclass=sqlalchemy.NullPool)
        with engine.connect() as connection:
            there = sqlalchemy.inspect(connection).has_table("alembic_version")
            rows = connection.execute(sqlalchemy.text("SELECT version_num FROM alembic_version")) if there else ()
            revisions = [row[0] for row in rows]
    except ImportError as error:
        cure = next((cure for start, cure in DRIVERS.items() if uri.startswith(start)), f"pip install {error.name}")
        if error.name == "psycopg2":  # which SQLAlchemy takes before 2.1 where no other one is named
            cure += ", and write postgresql+psycopg:// instead of postgresql://"
        raise TrackingError(f"tracking database {uri}: its driver is not installed ({error}): {cure}") from error
    except (ArgumentError, NoSuchModuleError) as error:
        raise TrackingError(f"tracking URI {uri} cannot be read: {error}. Check --tracking-uri") from error
    except SQLAlchemyError as error:
        text = " ".join(str(error.orig if isinstance(error, DBAPIError) else error).split())
        raise TrackingError(f"tracking database {uri} cannot be used: {text}. {_database_cure(uri, text)}") from error
    _check_schema(uri, revisions)


def _database_cure(uri: str, text: str) -> str:
    if "password" in text or "authentication" in text:
        return "Check user and password in --tracking-uri (special characters as %40 and the like)."
    if "does not exist" in text:
        return f"Make it (createdb {urlsplit(uri).path.lstrip('/')}), or correct --tracking-uri."
    return "Check host and port (--tracking-uri), and that it runs."


def _check_schema(uri: str, revisions: list[str]) -> None:
    """Raise TrackingError where another version of MLflow made the database. One without tables passes, as they are
    made later."""
    if not revisions:
        return
    import mlflow
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
    if set(revisions) == set(scripts.get_heads()):
        return
    found, version = ", ".join(revisions), mlflow.__version__
    if set(revisions) <= {script.revision for script in scripts.walk_revisions()}:
        raise TrackingError(
            f"tracking database {uri} has an older schema ({found}) than MLflow {version} needs. Back it up first, "
            f"then run: mlflow db upgrade {shlex.quote(uri)}"
        )
    raise TrackingError(
        f"tracking database {uri} has a schema ({found}) that MLflow {version} does not know: a newer MLflow made it. "
        "Install that one (pip install --upgrade mlflow), or give another --tracking-uri"
    )


def why(error: BaseException) -> str:
    """An error of the store in a few words, with passwords masked."""
    text = mask(" ".join(str(error).split()))
    for sign, words in (
        ("Connection refused", "nothing listens there (connection refused)"),
        ("NameResolutionError", "its name is unknown to DNS"),
        ("Name or service not known", "its name is unknown to DNS"),
        ("imed out", "it does not answer in time"),
        ("timeout exception", "it does not answer in time"),
        ("RemoteDisconnected", "it ended the connection"),
        ("Connection reset", "it ended the connection"),
        ("Connection aborted", "it ended the connection"),
        ("database is locked", "the database is locked by another process"),
    ):
        if sign in text:
            return words
    return text if len(text) <= 300 else f"{text[:300]} …"


def transient(error: BaseException) -> bool:
    """Whether an error may pass: false for one that would come again, such as a bad value, a deleted run or a missing
    file."""
    from sqlalchemy.exc import DataError, IntegrityError, ProgrammingError

    refused = (TrackingError, FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError,
               PermissionError, LookupError, TypeError, IntegrityError, DataError, ProgrammingError)  # fmt: skip
    if isinstance(error, refused) or type(error) is ValueError:
        return False
    code: Any = getattr(error, "error_code", None)
    if code is not None:
        return code not in _REFUSALS
    status = getattr(getattr(error, "response", None), "status_code", None)  # from artifacts' own requests
    return status is None or status >= 500 or status in (401, 403, 408, 429)


_REFUSALS = {
    "INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "BAD_REQUEST",
    "MALFORMED_REQUEST", "NOT_FOUND", "NOT_IMPLEMENTED", "ENDPOINT_NOT_FOUND", "RESOURCE_LIMIT_EXCEEDED",
}  # fmt: skip
