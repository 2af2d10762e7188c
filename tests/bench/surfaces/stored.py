"""Numbers that cost time, kept on disk by what they were computed from."""

import fcntl
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.sample import Image8

_DIGEST_BYTES = 16


class Stored:
    """An array for each crop, computed once whoever asks, in this process or a later one.

    `<path>.keys` holds a digest of the pixels of each crop, `<path>.rows` its array.

    Args:
        path: where both files lie, without their endings. It must say what is computed.
        shape: of one crop's array.
        dtype: of it.
        compute: gives the arrays [B, *shape] of crops [B, H, W].
        chunk: most crops it is given at a time.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, ...],
        dtype: type[np.floating],
        compute: Callable[[Image8], NDArray[np.floating]],
        chunk: int = 32,
    ) -> None:
        self._keys, self._rows = (path.with_name(f"{path.name}.{end}") for end in ("keys", "rows"))
        self._shape, self._dtype, self._compute = shape, dtype, compute
        self._chunk = chunk
        path.parent.mkdir(parents=True, exist_ok=True)

    def __call__(self, pixels: Image8, columns: slice = slice(None)) -> NDArray[np.floating]:
        """Arrays [N, *shape] of crops [N, H, W], or part of their first axis."""
        wanted = [
            hashlib.blake2b(one.tobytes(), digest_size=_DIGEST_BYTES).digest() for one in pixels
        ]
        known = self._places()
        missing = {key: row for row, key in enumerate(wanted) if key not in known}
        rows = np.array(list(missing.values()), np.int64)
        for start in range(0, len(rows), self._chunk):
            chosen = rows[start : start + self._chunk]
            self._add([wanted[row] for row in chosen], self._compute(pixels[chosen]))
        if missing:
            known = self._places()
        stored = np.memmap(self._rows, self._dtype, "r").reshape(-1, *self._shape)
        return np.asarray(stored[[known[key] for key in wanted], columns])

    def _places(self) -> dict[bytes, int]:
        text = self._keys.read_bytes() if self._keys.exists() else b""
        whole = len(text) // _DIGEST_BYTES
        return {text[i * _DIGEST_BYTES : (i + 1) * _DIGEST_BYTES]: i for i in range(whole)}

    def _add(self, keys: list[bytes], rows: NDArray[np.floating]) -> None:
        assert rows.shape[1:] == self._shape
        row_bytes = int(np.prod(self._shape)) * np.dtype(self._dtype).itemsize
        with self._keys.open("ab") as key_file, self._rows.open("ab") as row_file:
            # Other processes may add to the same files.
            fcntl.flock(key_file, fcntl.LOCK_EX)
            # What an earlier process left half written.
            whole = min(key_file.seek(0, 2) // _DIGEST_BYTES, row_file.seek(0, 2) // row_bytes)
            key_file.truncate(whole * _DIGEST_BYTES)
            row_file.truncate(whole * row_bytes)
            row_file.write(rows.astype(self._dtype).tobytes())
            row_file.flush()
            key_file.write(b"".join(keys))
