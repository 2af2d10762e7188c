"""The endpoint as HTTP, on a real server without Ray: who may ask, how much, what is said."""

import asyncio
import hashlib
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn

from cluster import endpoint
from cluster.endpoint import Examine, Gate, Limits, make_app
from cluster.examiner import Picture, Verdict
from data.errors import DataError

TOKEN = "open sesame"
PNG = {"Content-Type": "image/png"}
MAX_BYTES, MAX_REQUESTS = 1000, 2


async def _echo(picture: Picture) -> Verdict | DataError:
    """A verdict that tells what was asked; no image starts with X."""
    if picture.payload.startswith(b"X"):
        return DataError("this is no image")
    return Verdict(
        key=picture.key,
        score=len(picture.payload),
        p_value=0.5,
        decision="normal",
        regions=(),
        residual=0.0,
        feature=0.0,
        logit=0.0,
        height=4,
        width=4,
        tiles=1,
        model="0" * 64,
        map="map" if picture.with_map else None,
    )


def _wait_until(happens: Callable[[], bool], timeout_s: float = 30) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not happens():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


class Server:
    """An endpoint in a thread of its own.

    Args:
        examine: What it asks.
        token: What clients must send.
        answer_s: Longest time an image may take, in seconds.
    """

    def __init__(self, examine: Examine, token: str | None, answer_s: float = 60.0) -> None:
        digest = hashlib.sha256(token.encode()).digest() if token else None
        limits = Limits(
            max_bytes=MAX_BYTES, max_requests=MAX_REQUESTS, answer_s=answer_s, token_sha256=digest
        )
        self.gate, self.is_ready = Gate(MAX_REQUESTS), True
        app = make_app(examine, limits, self.gate, is_ready=self._says)
        self._server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
        self.loop = asyncio.new_event_loop()
        run = self.loop.run_until_complete
        self._thread = threading.Thread(target=lambda: run(self._server.serve()))

    async def _says(self) -> bool:
        return self.is_ready

    def __enter__(self) -> "Server":
        self._thread.start()
        _wait_until(lambda: self._server.started)
        (self.port,) = {s.getsockname()[1] for s in self._server.servers[0].sockets}
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=30)

    def ask(
        self,
        path: str = "/inspect",
        body: Any = b"image",
        headers: dict[str, str] | None = None,
        method: str = "POST",
    ) -> tuple[int, dict[str, Any], http.client.HTTPMessage]:
        """Status, content and headers of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, path, body, PNG if headers is None else headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read()), answer.headers

    def get(self, path: str) -> tuple[int, dict[str, Any]]:
        return self.ask(path, None, {}, "GET")[:2]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(_echo, None) as server:
        yield server


@pytest.fixture(scope="module")
def guarded() -> Iterator[Server]:
    with Server(_echo, TOKEN) as server:
        yield server


def test_an_image_is_examined_under_the_key_that_is_given(server: Server) -> None:
    status, said, _ = server.ask("/inspect?key=part-7&map=true", b"12345")
    assert (status, said["key"], said["score"], said["map"]) == (200, "part-7", 5, "map")
    assert Verdict.model_validate(said).decision == "normal"


def test_without_a_key_the_content_stands_for_it(server: Server) -> None:
    keys = [server.ask(body=body)[1]["key"] for body in (b"a", b"b", b"a")]
    assert keys[0] == keys[2] == hashlib.sha256(b"a").hexdigest()[:32]
    assert keys[0] != keys[1]
    assert server.ask(body=b"a")[1]["map"] is None


@pytest.mark.parametrize("query", ["key=a/b", "key=", f"key={'a' * 61}", "map=perhaps"])
def test_a_wrong_query_is_told_in_one_line(server: Server, query: str) -> None:
    status, said, _ = server.ask(f"/inspect?{query}")
    assert status == 422
    assert said["detail"].startswith(f"query.{query.partition('=')[0]}: ")


def test_what_is_no_image_is_refused_with_the_reason(server: Server) -> None:
    assert server.ask(body=b"X")[:2] == (422, {"detail": "this is no image"})


@pytest.mark.parametrize("kind", ["image/png", "IMAGE/JPEG", "image/tiff; x=y", "image/webp"])
def test_types_of_images_are_taken(server: Server, kind: str) -> None:
    assert server.ask(headers={"Content-Type": kind})[0] == 200


@pytest.mark.parametrize("kind", ["text/plain", "image/gif", "image/svg+xml", None])
def test_other_types_are_415(server: Server, kind: str | None) -> None:
    status, said, _ = server.ask(headers={"Content-Type": kind} if kind else {})
    assert status == 415
    assert "image/png" in said["detail"]


def test_size_is_limited_to_the_byte(server: Server) -> None:
    assert server.ask(body=b"1" * MAX_BYTES)[0] == 200
    status, said, _ = server.ask(body=b"1" * (MAX_BYTES + 1))
    assert (status, said["detail"]) == (413, "the image is larger than the 1000 bytes allowed")


def test_a_large_body_is_refused_before_it_is_sent(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.putrequest("POST", "/inspect")
    connection.putheader("Content-Type", "image/png")
    connection.putheader("Content-Length", str(10**12))
    connection.endheaders()
    assert connection.getresponse().status == 413


def test_a_body_of_unknown_length_is_read_no_further_than_allowed(server: Server) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 10**9:
            sent += MAX_BYTES // 4
            yield b"1" * (MAX_BYTES // 4)

    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.request("POST", "/inspect", endless(), PNG, encode_chunked=True)
        status = connection.getresponse().status
    except (ConnectionError, http.client.HTTPException):
        status = None
    assert status in (413, None)
    # What socket buffers swallow, at most.
    assert sent < 10**8


def test_a_body_that_does_not_arrive_is_given_up(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "_BODY_S", 0.2)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.putrequest("POST", "/inspect")
    connection.putheader("Content-Type", "image/png")
    connection.putheader("Content-Length", "10")
    connection.endheaders(b"12345")
    answer = connection.getresponse()
    assert answer.status == 408
    assert json.loads(answer.read()) == {"detail": "the image did not arrive within 0.2 s"}
    # Its place is free again.
    _wait_until(lambda: server.gate.num_inside == 0)


@pytest.mark.parametrize(
    "sent",
    [None, "", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer \xe9"],
)
def test_without_the_token_nothing_is_said(guarded: Server, sent: str | None) -> None:
    headers = PNG | ({} if sent is None else {"Authorization": sent})
    status, said, more = guarded.ask(headers=headers)
    assert (status, more["WWW-Authenticate"]) == (401, "Bearer")
    assert TOKEN not in json.dumps(said)


def test_with_the_token_there_is_an_answer(guarded: Server) -> None:
    assert guarded.ask(headers=PNG | {"Authorization": f"Bearer {TOKEN}"})[0] == 200
    # Health is nobody's secret, and who watches it has no token.
    assert guarded.get("/healthz") == (200, {"status": "alive"})


def test_ready_is_another_thing_than_alive(server: Server) -> None:
    assert server.get("/readyz") == (200, {"status": "ready"})
    server.is_ready = False
    try:
        assert server.get("/readyz") == (503, {"detail": "no model is loaded"})
        assert server.get("/healthz")[0] == 200
    finally:
        server.is_ready = True


def test_the_interface_describes_itself(server: Server) -> None:
    status, said = server.get("/openapi.json")
    operation = said["paths"]["/inspect"]["post"]
    assert status == 200
    assert "image/tiff" in operation["requestBody"]["content"]
    assert {"200", "401", "413", "415", "422", "429"} <= operation["responses"].keys()
    fields = said["components"]["schemas"]["Verdict"]["properties"]
    assert [name for name, field in fields.items() if not field.get("description")] == []
    assert server.get("/docs")[0] == 404


def test_an_engine_that_fails_is_told_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(_: Picture) -> Verdict | DataError:
        raise RuntimeError("out of memory\nmore of it")

    with Server(fail, None) as server:
        for _ in range(2 * MAX_REQUESTS):
            status, said, headers = server.ask()
            assert (status, headers["Retry-After"]) == (503, "1")
            assert said["detail"] == "the engine failed (RuntimeError); ask again, or read its log"
    assert "examining an image failed: RuntimeError: out of memory" in caplog.text
    assert "Traceback" not in caplog.text


def test_an_engine_that_does_not_answer_takes_no_room_for_ever() -> None:
    async def wait(_: Picture) -> Verdict | DataError:
        await asyncio.sleep(60)
        raise AssertionError

    with Server(wait, None, answer_s=0.2) as server:
        for _ in range(2 * MAX_REQUESTS):
            status, said, headers = server.ask()
            assert (status, headers["Retry-After"]) == (503, "1")
            assert said["detail"] == "no answer within 0.2 s; ask again"
        assert server.gate.num_inside == 0


@contextmanager
def _full() -> Iterator[tuple[Server, asyncio.Event, list[int]]]:
    """A server whose images wait for an event; the status codes its clients got."""
    release = asyncio.Event()
    statuses: list[int] = []

    async def wait(picture: Picture) -> Verdict | DataError:
        await release.wait()
        return await _echo(picture)

    with Server(wait, None) as server:
        clients = [
            threading.Thread(target=lambda: statuses.append(server.ask()[0]))
            for _ in range(MAX_REQUESTS)
        ]
        for client in clients:
            client.start()
        _wait_until(lambda: server.gate.num_inside == MAX_REQUESTS)
        try:
            yield server, release, statuses
        finally:
            server.loop.call_soon_threadsafe(release.set)
            for client in clients:
                client.join(timeout=30)


def test_who_finds_no_room_is_told_to_come_again_and_nobody_inside_is_lost() -> None:
    with _full() as (server, _, statuses):
        for _ in range(5):
            status, said, headers = server.ask()
            assert (status, headers["Retry-After"]) == (429, "1")
            assert said["detail"] == "2 images wait already; ask again later"
        assert server.get("/healthz")[0] == 200
        assert statuses == []
    assert statuses == [200] * MAX_REQUESTS


def test_a_closed_gate_lets_nobody_in_and_those_inside_out() -> None:
    with _full() as (server, _, statuses):
        closing = asyncio.run_coroutine_threadsafe(server.gate.close(), server.loop)
        _wait_until(lambda: not server.gate.is_open)
        assert server.ask()[0] == 503
        assert server.get("/readyz") == (503, {"detail": "about to stop"})
        assert not closing.done()
    assert statuses == [200] * MAX_REQUESTS
    closing.result(timeout=30)


def test_a_request_that_fails_makes_room_again(server: Server) -> None:
    for _ in range(2 * MAX_REQUESTS):
        assert server.ask(body=b"X")[0] == 422
        assert server.ask(headers={})[0] == 415
    assert server.ask()[0] == 200
