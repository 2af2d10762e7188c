"""The endpoint as HTTP: who may ask, how much, and what each answer says. Knows no Ray."""

import asyncio
import hashlib
import hmac
import logging
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel

from cluster import __version__
from cluster.examiner import Picture, Verdict
from data.errors import DataError

IMAGE_TYPES = ("image/png", "image/jpeg", "image/tiff", "image/bmp", "image/webp")
_BODY_S = 60.0
"""Longest time a client may take to send an image: others wait behind it."""
_POLL_S = 0.05
_log = logging.getLogger(__name__)
_RETRY = {"Retry-After": "1"}
_CLOSE = {"Connection": "close"}
"""Else the server would go on to read, and throw away, what the client sends."""
_KEY = r"^[A-Za-z0-9_-]{1,60}$"

Examine = Callable[[Picture], Awaitable[Verdict | DataError]]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the endpoint lets in.

    Attributes:
        max_bytes: Largest body.
        max_requests: Most images at a time, those being read and those waiting included.
        answer_s: Longest time an image may take, in seconds.
        token_sha256: Digest of the token clients must send, 32 bytes; None: anyone may ask.
    """

    max_bytes: int
    max_requests: int
    answer_s: float
    token_sha256: bytes | None


class Gate:
    """Lets requests in as long as there is room, and none once it is closed.

    Args:
        max_requests: Most that are inside at a time.

    Attributes:
        num_inside: How many are inside.
        is_open: Whether others are let in.
    """

    def __init__(self, max_requests: int) -> None:
        self._max_requests = max_requests
        self.num_inside, self.is_open = 0, True

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Be inside while the block lasts.

        Raises:
            HTTPException: 503 if it is closed, 429 if it is full.
        """
        if not self.is_open:
            raise HTTPException(503, "the endpoint is about to stop", _RETRY)
        if self.num_inside >= self._max_requests:
            raise HTTPException(
                429, f"{self.num_inside} images wait already; ask again later", _RETRY
            )
        self.num_inside += 1
        try:
            yield
        finally:
            self.num_inside -= 1

    async def close(self) -> None:
        """Let nobody in any more, and wait until the last one has left."""
        self.is_open = False
        while self.num_inside:
            await asyncio.sleep(_POLL_S)


class Problem(BaseModel):
    """Why there is no verdict."""

    detail: str


class State(BaseModel):
    """How the endpoint is."""

    status: str


def make_app(
    examine: Examine, limits: Limits, gate: Gate, *, is_ready: Callable[[], Awaitable[bool]]
) -> FastAPI:
    """The application.

    Args:
        examine: Examines one image.
        limits: What is let in.
        gate: What requests pass, so that the caller can close it.
        is_ready: Whether there is someone to examine images.
    """
    # No page of FastAPI's: they load scripts from elsewhere.
    app = FastAPI(
        title="Blemish",
        version=__version__,
        description="Finds defects in inspection images.",
        docs_url=None,
        redoc_url=None,
    )
    app.add_exception_handler(RequestValidationError, _one_line)

    @app.post(
        "/inspect",
        dependencies=[Depends(_permission(limits.token_sha256))],
        openapi_extra={"requestBody": _BODY},
        responses={status: {"model": Problem, "description": d} for status, d in _ERRORS.items()},
    )
    async def inspect(
        request: Request,
        key: Annotated[str | None, Query(pattern=_KEY, description=_KEY_HELP)] = None,
        map: Annotated[bool, Query(description="whether to send the map as well")] = False,
    ) -> Verdict:
        """Examine an image: the body is the image file, of 8 or 16 bits a channel."""
        with gate.enter():
            payload = await _read(request, limits.max_bytes)
            name = key or hashlib.sha256(payload).hexdigest()[:32]
            answer = await _answer(examine, Picture(payload, name, map), limits.answer_s)
        if isinstance(answer, DataError):
            raise HTTPException(422, str(answer))
        return answer

    @app.get("/healthz")
    async def healthz() -> State:
        """Say that the process lives."""
        return State(status="alive")

    @app.get("/readyz", responses={503: {"model": Problem, "description": "not (yet) ready"}})
    async def readyz() -> State:
        """Say whether images can be examined: a model is loaded and the endpoint not stopping."""
        if not gate.is_open:
            raise HTTPException(503, "about to stop")
        if not await is_ready():
            raise HTTPException(503, "no model is loaded")
        return State(status="ready")

    return app


def _permission(token_sha256: bytes | None) -> Callable[..., Awaitable[None]]:
    bearer = HTTPBearer(auto_error=False, description="the token of the endpoint, if it has one")

    async def permit(
        sent: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
    ) -> None:
        token = sent.credentials if sent else ""
        # Digests are of one length, so that the time tells nothing about the token.
        digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        if token_sha256 and not hmac.compare_digest(digest, token_sha256):
            raise HTTPException(
                401, "send the header 'Authorization: Bearer TOKEN'", {"WWW-Authenticate": "Bearer"}
            )

    return permit


async def _answer(examine: Examine, picture: Picture, answer_s: float) -> Verdict | DataError:
    """What the engine says.

    Raises:
        HTTPException: 503 if it fails, of a full memory, say, or is gone: no fault of the client's.
    """
    try:
        async with asyncio.timeout(answer_s):
            return await examine(picture)
    except TimeoutError:
        raise HTTPException(503, f"no answer within {answer_s:g} s; ask again", _RETRY) from None
    # Whatever it is, a client must get an answer it can read.
    except Exception as error:
        _log.error("examining an image failed: %s", _first_line(error))
        told = f"the engine failed ({type(error).__name__}); ask again, or read its log"
        raise HTTPException(503, told, _RETRY) from None


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


async def _read(request: Request, max_bytes: int) -> bytes:
    """The body, of which no more is read than allowed.

    Raises:
        HTTPException: 415 for another type than an image's, 413 if it is too large, 408 if it takes
            too long.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in IMAGE_TYPES:
        raise HTTPException(415, f"Content-Type is {kind!r}, allowed are {', '.join(IMAGE_TYPES)}")
    told = f"the image is larger than the {max_bytes} bytes allowed"
    too_large = HTTPException(413, told, _CLOSE)
    length = request.headers.get("content-length", "")
    if re.fullmatch(r"\d+", length) and int(length) > max_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    raise too_large
    except TimeoutError:
        told = f"the image did not arrive within {_BODY_S:g} s"
        raise HTTPException(408, told, _CLOSE) from None
    return bytes(body)


async def _one_line(request: Request, error: Exception) -> JSONResponse:
    """What is wrong with a query, in the form of all other problems."""
    assert isinstance(error, RequestValidationError)
    mistakes = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
    return JSONResponse({"detail": "; ".join(mistakes)}, 422)


_KEY_HELP = (
    "key of the image as an inspection's scores list it: the answer then equals that row; without "
    "it the image's content stands for it, so that the same file always gets the same answer"
)
_BODY: dict[str, Any] = {
    "required": True,
    "description": "the image file",
    "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in IMAGE_TYPES},
}
_ERRORS: dict[int | str, str] = {
    401: "the token is missing or wrong",
    408: "the image did not arrive in time",
    413: "the image file is too large",
    415: "the Content-Type is not that of an image",
    422: "the image cannot be used, or the query is wrong",
    429: "too many images wait; ask again after Retry-After seconds",
    503: "the endpoint is about to stop, or its engine failed",
}
