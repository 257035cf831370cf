"""Errors of a bucket in plain words: its servers' codes, their meanings and the remedies."""

from __future__ import annotations

import re
from typing import NamedTuple

from pforce.base.errors import InputError
from pforce.base.secrets import mask


class StorageError(InputError, RuntimeError):
    """A storage cannot be used. The message names the storage, the reason and the remedy, and no credentials."""


class Cause(NamedTuple):
    """The cause of a failure."""

    reason: str
    """The reason, in which {bucket} and {endpoint} are filled in."""
    cure: str
    lasting: bool
    """Whether retrying is useless."""

    def sentence(self, bucket: str, endpoint: str) -> str:
        """The reason and the remedy, filled in."""
        named = {"bucket": bucket, "endpoint": endpoint}
        return f"{self.reason.format(**named)}; {self.cure.format(**named)}"


# The first match counts: a message about credentials also names the operation and the connection that failed.
CAUSES: tuple[tuple[str, Cause], ...] = (
    (
        r"OAuth2 access token|UNAUTHENTICATED",
        Cause("there are no credentials for {endpoint}, or its servers do not answer", "set "
              "GOOGLE_APPLICATION_CREDENTIALS, or write gs://anonymous@BUCKET for a public bucket", True),
    ),
    (
        r"NO_SUCH_BUCKET|NoSuchBucket|bucket does not exist",
        Cause("the bucket {bucket} does not exist at {endpoint}", "make it, or correct its name", True),
    ),
    (
        r"INVALID_ACCESS_KEY|SIGNATURE_DOES_NOT_MATCH|INVALID_CLIENT_TOKEN|InvalidToken|INVALID_SIGNATURE|EXPIRED|"
        r"UNRECOGNIZED_CLIENT|MISSING_AUTHENTICATION",
        Cause("{endpoint} does not know the credentials, or they have expired", "set AWS_ACCESS_KEY_ID and "
              "AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN), or AWS_PROFILE", True),
    ),
    (
        r"ACCESS_DENIED|PERMISSION_DENIED|AccessDenied|403",
        Cause("no permission for the bucket {bucket}", "give these credentials the right to list, read, write and "
              "delete in it (s3:ListBucket, GetObject, PutObject, DeleteObject), or use others", True),
    ),
    (
        r"NETWORK_CONNECTION|curlCode|CURL error|UNAVAILABLE|DEADLINE_EXCEEDED|REQUEST_TIMEOUT",
        Cause("{endpoint} does not answer", "check the network and the endpoint (endpoint_override in the URI, or "
              "AWS_ENDPOINT_URL)", False),
    ),
    (
        r"RESOURCE_NOT_FOUND|NOT_FOUND|404",
        Cause("the bucket {bucket} is not at {endpoint}", "make it, or correct its name and the endpoint", True),
    ),
)  # fmt: skip


def cause_of(error: Exception) -> Cause:
    """The cause of an error of pyarrow or of this machine's file system."""
    if (
        isinstance(error, OSError) and error.filename is not None
    ):  # an error of a local file: pyarrow's own errors name no file
        return Cause(f"{error.strerror} ({error.filename})", "make room or give another PFORCE_CACHE", True)
    for pattern, cause in CAUSES:
        if re.search(pattern, str(error)):
            return cause
    # A URI in the message may hold credentials, and braces are no fields.
    told = mask(str(error)).replace("{", "{{").replace("}", "}}")
    return Cause(told, "check the URI and what the endpoint allows", isinstance(error, ValueError))
