"""Memory of a process that streams; `tests/bench/data/stream.py` starts it.

`python stream_memory.py FOLDER RESOLUTION BATCH PASSES PAUSE_S local|remote` prints JSON: resident
memory before the stream was opened, its peak since, and after each pass, MiB. The pause follows
each batch, so that the stream reads as far ahead as it may. For `remote` the folder counts as lying
elsewhere, so that every shard goes through the cache.
"""

import json
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data.dataset import load_index
from data.reader import SplitReader
from data.shard_cache import ShardCache
from data.store import Store
from data.stream import BatchStream
from tests.bench.data.stream_sets import SPLIT

_SETTLE_S = 0.5


@dataclass(frozen=True)
class Elsewhere(Store):
    """A folder that is not local to its readers."""

    @property
    def is_local(self) -> bool:
        """Whether readers may open its files."""
        return False

    def read_chunks(self, path: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield an object in pieces, as from a server."""
        return Store(self.uri).read_chunks(path, start, length)


def memory_mib(field: str) -> float:
    """A line of /proc/self/status: VmRSS is resident memory, VmHWM its peak."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"{field}:\s+(\d+) kB", status)
    assert found
    return int(found[1]) / 1024


def measure(
    store: Store, cache: str, resolution: int, batch: int, passes: int, pause_s: float
) -> dict[str, object]:
    """Stream some passes and watch the memory of this process."""
    index = load_index(Store(store.uri))
    before_mib = memory_mib("VmRSS")
    reader = SplitReader(
        ShardCache(store, folder=cache), index, SPLIT, resolution, lanes=batch, seed=0
    )
    stream = BatchStream(reader, None, batch=batch)
    after_mib = []
    for _ in range(passes):
        for _ in range(index.num_samples(SPLIT) // batch):
            # As a training step does, keep the batch while the next ones are read.
            kept = stream.next_batch()
            time.sleep(pause_s)
        # Each time with the same batches ready: one more or less is many times what could leak.
        time.sleep(_SETTLE_S)
        after_mib.append(memory_mib("VmRSS"))
    del kept
    stream.close()
    assert not stream.losses
    peak_mib = memory_mib("VmHWM")
    return {"before_mib": before_mib, "peak_mib": peak_mib, "after_mib": after_mib}


def main() -> None:
    """Measure, print."""
    folder, resolution, batch, passes, pause_s, kind = sys.argv[1:]
    store = Store(folder) if kind == "local" else Elsewhere(folder)
    with tempfile.TemporaryDirectory() as cache:
        counts = int(resolution), int(batch), int(passes)
        print(json.dumps(measure(store, cache, *counts, float(pause_s))))


if __name__ == "__main__":
    main()
