"""Asking a store that does not answer again, for a while."""

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from data.errors import StoreUnavailableError
from data.store import Store

_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 10.0
Result = TypeVar("Result")


class Patience:
    """Pauses that grow while a store fails, until it has failed for too long.

    Args:
        retry_s: how long it may fail before giving up, seconds.
    """

    def __init__(self, retry_s: float) -> None:
        """See the class."""
        self._retry_s = retry_s
        self.renew()

    def renew(self) -> None:
        """Note that it answered."""
        self._pause_s, self._failing_since = _FIRST_PAUSE_S, 0.0

    def wait(self) -> bool:
        """Pause after a failure; returns False, at once, where it is time to give up."""
        now = time.monotonic()
        self._failing_since = self._failing_since or now
        if now - self._failing_since + self._pause_s > self._retry_s:
            return False
        # Many that lost the same server must not all come back at once.
        time.sleep(self._pause_s * random.uniform(0.5, 1.0))
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        return True


def resumed(
    read: Callable[[int], Iterator[bytes]], *, start: int = 0, retry_s: float
) -> Iterator[bytes]:
    """Yield an object in pieces; after a failure the next request begins where it broke off.

    Args:
        read: reads the object from a byte on.
        start: first byte.
        retry_s: how long the store may fail, seconds.
    """
    patience = Patience(retry_s)
    while True:
        try:
            for chunk in read(start):
                yield chunk
                start += len(chunk)
                patience.renew()
        except StoreUnavailableError:
            if not patience.wait():
                raise
        else:
            return


@dataclass(frozen=True)
class PatientStore(Store):
    """A store whose objects are read, written, found and deleted in spite of a short outage.

    Attributes:
        retry_s: how long it is asked again before an operation fails, seconds.
    """

    retry_s: float = 120.0

    def child(self, *parts: str) -> "PatientStore":
        """Return the store of a sub-folder."""
        return PatientStore(super().child(*parts).uri, self.retry_s)

    def read_chunks(self, path: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield an object in pieces, going on where it broke off."""
        read = super().read_chunks
        end = None if length is None else start + length
        yield from resumed(
            lambda at: read(path, at, None if end is None else end - at),
            start=start,
            retry_s=self.retry_s,
        )

    def write_bytes(self, path: str, payload: bytes) -> None:
        """Write one object atomically."""
        self._again(super().write_bytes, path, payload)

    def exists(self, path: str = "") -> bool:
        """Return whether there is an object or a folder at `path`."""
        return self._again(super().exists, path)

    def list(self, prefix: str = "", suffix: str = "") -> list[str]:
        """Return the sorted names of all objects at any depth."""
        return self._again(super().list, prefix, suffix)

    def delete(self, path: str) -> None:
        """Delete one object, if it is there."""
        self._again(super().delete, path)

    def delete_folder(self, path: str) -> None:
        """Delete a folder and all that lies in it."""
        self._again(super().delete_folder, path)

    def _again(self, operation: Callable[..., Result], *args: Any) -> Result:
        patience = Patience(self.retry_s)
        while True:
            try:
                return operation(*args)
            except StoreUnavailableError:
                if not patience.wait():
                    raise
