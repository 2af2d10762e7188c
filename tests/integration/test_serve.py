"""The endpoint on a real Ray Serve: the answers of the batch job, whatever happens meanwhile."""

import base64
import http.client
import io
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cluster.inspection_files import picture_path, read_scores
from data.store import Store
from tests.endpoint import PNG, Endpoint
from tests.jobs import flags, run_cli
from tests.tiny_model import SETTINGS, calibrated_model, image_file, model_config

MAX_BATCH, MAX_QUEUE = 4, 4
TOKEN = "open sesame"
ASKING = PNG | {"Authorization": f"Bearer {TOKEN}"}

Expected = dict[str, tuple[bytes, dict[str, Any]]]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Settings of a run whose model cuts images into tiles."""
    folder = tmp_path_factory.mktemp("serve")
    calibrated_model(model_config(str(folder / "run")), "tiles")
    return SETTINGS | {"run.dir": folder / "run", "inspect.dir": folder / "inspection"}


@pytest.fixture(scope="module")
def expected(settings: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> Expected:
    """Image file and row of the scores of each image, by key."""
    folder = tmp_path_factory.mktemp("images")
    files = {f"part{n}": image_file(n) for n in range(16)}
    for key, payload in files.items():
        (folder / f"{key}.png").write_bytes(payload)
    more = {"inspect.source": folder, "inspect.num_maps": 2}
    status, output = run_cli(["inspect", *flags(settings | more)])
    assert status == 0, output
    table = read_scores(Store(str(settings["inspect.dir"])))
    return {row["key"]: (files[row["key"]], row) for row in table.to_dict("records")}


@pytest.fixture(scope="module")
def endpoint(settings: dict[str, object]) -> Iterator[Endpoint]:
    sizes = {"serve.max_batch": MAX_BATCH, "serve.max_queue": MAX_QUEUE, "serve.max_bytes": 100_000}
    with Endpoint(flags(settings | sizes), {"BLEMISH_TOKEN": TOKEN}) as endpoint:
        yield endpoint


def _ask(endpoint: Endpoint, key: str, payload: bytes) -> tuple[int, dict[str, Any]]:
    return endpoint.ask(f"/inspect?key={key}", payload, ASKING)


def _is_right(said: dict[str, Any], row: dict[str, Any]) -> bool:
    names = ("key", "score", "p_value", "decision", "residual", "feature", "logit", "tiles")
    same = all(said[name] == row[name] for name in names)
    return same and said["regions"] == list(row["regions"])


def test_answers_are_those_of_the_batch_job(
    endpoint: Endpoint, expected: Expected, settings: dict[str, object]
) -> None:
    out = Store(str(settings["inspect.dir"]))
    num_maps = 0
    assert len(expected) == 16
    for key, (payload, row) in expected.items():
        status, said = endpoint.ask(f"/inspect?key={key}&map=true", payload, ASKING)
        assert status == 200, said
        assert _is_right(said, row)
        if row["pictures"]:
            num_maps += 1
            stored = out.read_bytes(picture_path(row["unit"], key, "map"))
            assert base64.b64decode(said["map"]) == stored
            with Image.open(io.BytesIO(stored)) as opened:
                assert np.asarray(opened).shape == (said["height"], said["width"])
    assert num_maps


def test_what_is_no_answer_is_told_with_its_reason(endpoint: Endpoint, expected: Expected) -> None:
    payload = next(iter(expected.values()))[0]
    assert _ask(endpoint, "a", payload[:100]) == (422, {"detail": "this PNG is cut off"})
    assert _ask(endpoint, "a/b", payload)[0] == 422
    assert endpoint.ask(body=payload)[0] == 401
    wrong = ASKING | {"Authorization": "Bearer sesame"}
    assert endpoint.ask(body=payload, headers=wrong)[0] == 401
    assert endpoint.ask(body=payload, headers=ASKING | {"Content-Type": "text/plain"})[0] == 415
    assert endpoint.ask(body=b"1" * 100_001, headers=ASKING)[0] == 413
    assert endpoint.ask("/healthz", method="GET") == (200, {"status": "alive"})
    assert endpoint.ask("/readyz", method="GET") == (200, {"status": "ready"})
    assert "/inspect" in endpoint.ask("/openapi.json", method="GET")[1]["paths"]
    assert 'curl -H "Authorization: Bearer $BLEMISH_TOKEN"' in endpoint.output
    assert TOKEN not in endpoint.output


def test_an_endless_body_is_cut_off(endpoint: Endpoint) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 10**9:
            sent += 10_000
            yield b"1" * 10_000

    connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=120)
    try:
        connection.request("POST", "/inspect", endless(), ASKING, encode_chunked=True)
        assert connection.getresponse().status == 413
    # It closes the connection, which the client may notice before it reads the answer.
    except ConnectionError:
        pass
    assert sent < 10**9
    assert endpoint.ask("/healthz", method="GET")[0] == 200


@pytest.mark.slow
def test_many_at_once_get_each_its_own_answer_or_429(
    endpoint: Endpoint, expected: Expected
) -> None:
    """More come than there is room for; nobody gets a wrong answer, and room is used."""
    items = list(expected.items()) * 3
    barrier = threading.Barrier(32, timeout=60)

    def ask(number: int) -> tuple[int, bool]:
        key, (payload, row) = items[number % len(items)]
        if number < 32:
            barrier.wait()
        status, said = _ask(endpoint, key, payload)
        return status, status == 200 and _is_right(said, row)

    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(ask, range(160)))
    statuses = [status for status, _ in answers]
    print({status: statuses.count(status) for status in set(statuses)})
    assert set(statuses) == {200, 429}
    assert all(right for status, right in answers if status == 200)
    assert statuses.count(200) >= MAX_BATCH + MAX_QUEUE
    # All room is free again.
    with ThreadPoolExecutor(MAX_BATCH + MAX_QUEUE) as pool:
        assert {status for status, _ in pool.map(ask, range(32, 40))} == {200}


class Clients:
    """Clients that ask again and again, each until it is refused or told to stop."""

    def __init__(self, endpoint: Endpoint, expected: Expected, count: int) -> None:
        self.statuses: list[list[int | str]] = [[] for _ in range(count)]
        self.stop, self._endpoint, self._items = threading.Event(), endpoint, list(expected.items())
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(count)]

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        _wait_until(lambda: all(len(seen) >= 2 for seen in self.statuses))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind:
            self.stop.set()
        for thread in self._threads:
            thread.join(timeout=180)
            assert not thread.is_alive()

    def go_on_and_stop(self) -> None:
        """Stop when each client has four answers more, or one that ended it."""
        before = [len(seen) for seen in self.statuses]
        _wait_until(
            lambda: all(
                len(seen) > n + 3 or seen[-1] != 200
                for seen, n in zip(self.statuses, before, strict=True)
            )
        )
        self.stop.set()

    def _run(self, number: int) -> None:
        seen = self.statuses[number]
        while not self.stop.is_set():
            key, (payload, row) = self._items[len(seen) % len(self._items)]
            try:
                status, said = _ask(self._endpoint, key, payload)
            except (OSError, http.client.HTTPException) as error:
                seen.append(repr(error))
                return
            seen.append(status if status != 200 or _is_right(said, row) else "wrong")
            if status != 200:
                return


def _wait_until(happens: Callable[[], bool], timeout_s: float = 120) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not happens():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_replica_that_dies_loses_no_image(endpoint: Endpoint, expected: Expected) -> None:
    (replica,) = endpoint.replicas()
    with Clients(endpoint, expected, 4) as clients:
        replica.kill()
        _wait_until(lambda: endpoint.ask("/readyz", method="GET")[0] == 503)
        clients.go_on_and_stop()
    assert {status for seen in clients.statuses for status in seen} == {200}
    _wait_until(lambda: endpoint.ask("/readyz", method="GET")[0] == 200)
    assert replica.pid not in {one.pid for one in endpoint.replicas()}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_of_two_replicas_one_may_die(settings: dict[str, object], expected: Expected) -> None:
    words = flags(settings | {"serve.replicas": 2, "cluster.cpus_per_worker": 0.5})
    with Endpoint(words, {"BLEMISH_TOKEN": TOKEN}) as endpoint:
        first, _ = before = endpoint.replicas()
        with Clients(endpoint, expected, 4) as clients:
            first.kill()
            _wait_until(lambda: len({one.pid for one in endpoint.replicas()} - {first.pid}) == 2)
            clients.go_on_and_stop()
        assert {status for seen in clients.statuses for status in seen} == {200}
        assert before[1].is_running()
        assert endpoint.stop() == 0


@pytest.mark.timeout(600)
def test_it_answers_what_it_has_accepted_before_it_stops(
    endpoint: Endpoint, expected: Expected
) -> None:
    with Clients(endpoint, expected, 4) as clients:
        assert endpoint.stop() == 0
    for seen in clients.statuses:
        assert set(seen[:-1]) == {200}
    last = [seen[-1] for seen in clients.statuses]
    # Who asks only after the last answer may find no route, or nobody.
    assert 503 in last
    assert {status for status in last if isinstance(status, int)} <= {503, 404}
    assert "stopping: what was accepted is answered first" in endpoint.output


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"serve.host": "0.0.0.0"}, "serve.host=0.0.0.0 is reachable from other machines"),
        ({"search.steps": 6}, "search.steps=6 is not the 2 the model"),
        ({"run.dir": "/nowhere"}, "/nowhere holds no trained model"),
        ({"cluster.gpus_per_worker": 1}, "needs 1 CPU and 1 GPU, the cluster's nodes have"),
    ],
)
def test_it_refuses_to_start_with_a_reason(
    settings: dict[str, object], more: dict[str, object], told: str
) -> None:
    # So that no machine with tests has a GPU.
    words = ["serve", *flags(settings | more)]
    status, output = run_cli(words, env={"CUDA_VISIBLE_DEVICES": ""})
    assert status == 2
    assert told in output
