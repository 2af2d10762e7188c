"""The real endpoint, started as a person does, and a client for it."""

import http.client
import json
import signal
import threading
import time
from collections.abc import Sequence
from typing import Any

import psutil

from tests.jobs import kill_tree, start_cli
from tests.ports import free_port

PNG = {"Content-Type": "image/png"}
_START_S = 240


class Endpoint:
    """`python -m cluster serve` in processes of its own while the block lasts.

    Args:
        words: Settings as command-line words.
        env: More environment.
    """

    def __init__(self, words: Sequence[str], env: dict[str, str] | None = None) -> None:
        self.port = free_port()
        self.output = ""
        self._words = ["serve", *words, "--serve.port", str(self.port)]
        self._env = env

    def __enter__(self) -> "Endpoint":
        self._process = start_cli(self._words, env=self._env)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self._wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _wait_until_ready(self) -> None:
        deadline_s = time.monotonic() + _START_S
        while "ready: " not in self.output:
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                raise AssertionError(self.output)
            time.sleep(0.1)

    def __exit__(self, *_: object) -> None:
        kill_tree(self._process.pid)
        self._reader.join()

    def stop(self, timeout_s: float = 120) -> int:
        """Ask it to stop; returns its exit status."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout_s)

    def replicas(self) -> list[psutil.Process]:
        """The processes that hold a model."""
        family = psutil.Process(self._process.pid).children(recursive=True)
        return [one for one in family if "blemish:engine" in _command(one)]

    def ask(
        self,
        path: str = "/inspect",
        body: Any = None,
        headers: dict[str, str] | None = None,
        method: str = "POST",
    ) -> tuple[int, dict[str, Any]]:
        """Status and content of an answer; what is no JSON is its `detail`."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, body, PNG if headers is None else headers)
            answer = connection.getresponse()
            content = answer.read()
            if "json" not in answer.headers.get("Content-Type", ""):
                return answer.status, {"detail": content.decode()}
            return answer.status, json.loads(content)
        finally:
            connection.close()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self.output += line


def _command(process: psutil.Process) -> str:
    """Its command line; empty where it ended meanwhile."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
