"""S3 as the store uses it: where it is, one client a process, and what its failures mean."""

import errno
import functools
import os
from collections.abc import Iterator
from typing import Any

import aiohttp
import boto3.session
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ReadTimeoutError,
    ResponseStreamingError,
)

from data.errors import DataError, LostDataError, StoreError, StoreUnavailableError

# Each request is tried twice by botocore and twice by s3fs: a silent host costs about 4 * 3 s.
ATTEMPTS = 2
_CONNECT_TIMEOUT_S = 3
_READ_TIMEOUT_S = 15
_CONNECTIONS = 32
_PIECE_BYTES = 2**20
_SERVER_ERROR = 500
_TOO_MANY_REQUESTS = 429
_BEYOND_THE_END = 416
_NOT_FOUND = 404
_FORBIDDEN = 403

FAILURES = (OSError, BotoCoreError, ClientError, aiohttp.ClientError)
_UNREACHABLE = (EndpointConnectionError, ConnectTimeoutError, ReadTimeoutError, TimeoutError)
_BROKEN_OFF = (HTTPClientError, IncompleteReadError, ResponseStreamingError, aiohttp.ClientError)
_REFUSED = (PermissionError, NoCredentialsError, PartialCredentialsError)
_EXPIRED = ("ExpiredToken", "InvalidToken", "TokenRefreshRequired")
_OF_THE_FILE = (errno.EACCES, errno.EPERM, errno.EIO, errno.EISDIR, errno.ENOTDIR, errno.ELOOP)
"""What a local disk says of one file; anything else, say too many open files, is said of all."""
_ENVIRONMENT = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_DEFAULT_REGION",
)


def endpoint_url() -> str | None:
    """Where the server is, by the standard variables; None means Amazon's own.

    Raises:
        DataError: if the address has no scheme.
    """
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None
    if url and not url.startswith(("http://", "https://")):
        raise DataError(f"AWS_ENDPOINT_URL={url!r} has no scheme; write http://{url} or https://")
    return url


def client_options() -> dict[str, Any]:
    """Settings that every client of ours shares."""
    return {
        "connect_timeout": _CONNECT_TIMEOUT_S,
        "read_timeout": _READ_TIMEOUT_S,
        "retries": {"total_max_attempts": ATTEMPTS, "mode": "standard"},
        # Many S3-compatible servers reject botocore's trailing checksums or store them as data.
        **({"request_checksum_calculation": "when_required"} if endpoint_url() else {}),
    }


def object_chunks(location: str, start: int, length: int | None) -> Iterator[bytes]:
    """Yield an object, `bucket/key`, from byte `start` on, by one GET request."""
    bucket, _, key = location.partition("/")
    end = "" if length is None else start + length - 1
    wanted = {"Range": f"bytes={start}-{end}"} if start or length is not None else {}
    environment = tuple(os.environ.get(name) for name in _ENVIRONMENT)
    client = _client(os.getpid(), endpoint_url(), environment)
    try:
        body = client.get_object(Bucket=bucket, Key=key, **wanted)["Body"]
    except ClientError as error:
        if _status(error) == _BEYOND_THE_END:
            return
        raise
    with body:
        while piece := body.read(_PIECE_BYTES):
            yield piece


@functools.lru_cache(maxsize=4)
def _client(process: int, endpoint: str | None, environment: tuple[str | None, ...]) -> Any:
    """One client for all threads of a process, as long as its surroundings stay the same."""
    config = Config(max_pool_connections=_CONNECTIONS, **client_options())
    return boto3.session.Session().client("s3", endpoint_url=endpoint, config=config)


def explain(action: str, url: str, error: BaseException) -> DataError:
    """The error to raise for a failure: what failed, why, and what to look at."""
    status = _status(error)
    if isinstance(error, FileNotFoundError) or status == _NOT_FOUND:
        return LostDataError(
            f"{action} {url} failed: no such object, folder or bucket; check the location"
        )
    if not url.startswith("s3://"):
        fix = "check the path, its permissions and the free space"
    elif isinstance(error, _UNREACHABLE):
        endpoint = endpoint_url() or "not set (AWS itself)"
        fix = f"check that the server is up and AWS_ENDPOINT_URL, now {endpoint}"
    elif _code(error) in _EXPIRED:
        fix = "renew the credentials (AWS_SESSION_TOKEN) and run the command again"
    elif isinstance(error, _REFUSED) or status == _FORBIDDEN:
        fix = "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy"
    else:
        fix = "check AWS_ENDPOINT_URL, AWS_DEFAULT_REGION and the bucket"
    kind: type[DataError] = StoreUnavailableError if _is_passing(error, status) else StoreError
    if not url.startswith("s3://") and getattr(error, "errno", None) in _OF_THE_FILE:
        kind = DataError
    return kind(f"{action} {url} failed: {_reason(error)}; {fix}")


def _is_passing(error: BaseException, status: int) -> bool:
    """Whether the same request may succeed later: no answer, a broken connection, a 5xx or 429."""
    if isinstance(error, (*_UNREACHABLE, *_BROKEN_OFF, ConnectionError)):
        return True
    return status >= _SERVER_ERROR or status == _TOO_MANY_REQUESTS


def _response(error: BaseException) -> dict[str, Any]:
    """What the server answered, which s3fs hides behind an error of its own."""
    found = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    return found or {}


def _status(error: BaseException) -> int:
    return int(_response(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _code(error: BaseException) -> str:
    return str(_response(error).get("Error", {}).get("Code", ""))


def _reason(error: BaseException) -> str:
    """The server's words, or its code where it sends none."""
    code, message = _code(error), str(_response(error).get("Error", {}).get("Message") or "")
    if code:
        return f"{code} {message}".strip()
    return " ".join(str(error).split()) or type(error).__name__
