"""Encoded bytes: what our reading adds to plain file reads and to plain GETs."""

import functools
import hashlib
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np

from data.dataset import INDEX_NAME, DatasetIndex, ShardInfo, load_index
from data.reader import Encoded, SplitReader
from data.sample import Image8
from data.shard_cache import ShardCache
from data.store import Store
from data.stream import BatchStream
from tests.bench.data.stream_sets import SPLIT, pack_surfaces
from tests.bench.data.turns import Row, Taken, against_bar, in_turns, rate, ratio
from tests.ceph_server import BUCKET, CephServer, missing_programs

BATCH = 16
SIDE = 256
NUM_FETCHERS = 4
BAR = 0.8


class Undecoded(SplitReader):
    """Reads the encoded bytes and stops there."""

    def __init__(self, cache: ShardCache, index: DatasetIndex) -> None:
        """See the class."""
        super().__init__(cache, index, SPLIT, SIDE, lanes=BATCH, seed=0)
        self.shape = (1, 1, 1)

    def decode(self, number: int, payload: Encoded) -> Image8:
        """Return one black pixel."""
        assert payload.image
        return np.zeros((1, 1, 1), np.uint8)


def local(root: Path, *, quick: bool) -> list[Row]:
    """Encoded bytes of all samples in batch order against reading the shard files whole."""
    store = pack_surfaces(root / "local", SIDE, 3, 128 if quick else 1024)
    paths = [store.local_path(shard.path) for shard in shards_in(store)]
    repeats = 1 if quick else 9
    rows = _local_rows(store, paths, repeats, cold=False)
    for path in paths:
        drop(path)
    if any(map(is_cached, paths)):
        return [*rows, {"from": "disk", "case": "skipped: files stay in the page cache"}]
    return rows + _local_rows(store, paths, repeats, cold=True)


def shards_in(store: Store) -> tuple[ShardInfo, ...]:
    """The shards that are read here."""
    return load_index(store).shards_of(SPLIT, SIDE)


def drop(path: Path) -> None:
    """Ask the system to forget a file's pages."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def is_cached(path: Path) -> bool:
    """Whether the middle of a file can be read without waiting for the disk."""
    middle = path.stat().st_size // 2
    with path.open("rb") as file:
        try:
            return os.preadv(file.fileno(), [bytearray(1)], middle, os.RWF_NOWAIT) == 1
        except BlockingIOError:
            return False


def _local_rows(store: Store, paths: list[Path], repeats: int, *, cold: bool) -> list[Row]:
    index = load_index(store)
    kept = Undecoded(ShardCache(store), index)
    passes = itertools.count()

    def timed(function: Callable[[], object]) -> Callable[[], float]:
        def call() -> float:
            for path in paths if cold else ():
                drop(path)
            started_s = time.perf_counter()
            function()
            return time.perf_counter() - started_s

        return call

    ways = {
        "plain read": lambda: read_files(paths),
        "first pass, reader alone": lambda: read_pass(Undecoded(ShardCache(store), index), 0),
        "first pass, stream": lambda: stream_pass(Undecoded(ShardCache(store), index)),
        "later passes, reader alone": lambda: read_pass(kept, next(passes)),
    }
    taken = in_turns({name: timed(way) for name, way in ways.items()}, repeats)
    kept.close()
    return transfer_rows(taken, store, {"from": "disk" if cold else "page cache"})


def read_files(paths: list[Path]) -> None:
    """Read whole files, and let go of each: fresh memory for all costs more than reading them."""
    for path in paths:
        path.read_bytes()


def read_pass(reader: SplitReader, number: int) -> None:
    """Read the encoded bytes of one pass, batch by batch."""
    first = number * reader.order.num_samples
    for position in range(first, first + reader.order.num_samples, BATCH):
        reader.payloads(range(position, position + BATCH))


def stream_pass(reader: SplitReader) -> None:
    """The same through the stream, whose threads fetch shards ahead."""
    stream = BatchStream(reader, None, batch=BATCH)
    for _ in range(reader.order.num_samples // BATCH):
        stream.next_batch()
    stream.close()


def transfer_rows(taken: Taken, store: Store, head: Row) -> list[Row]:
    """One row for each way to read all images; all but the first are compared with it."""
    shards = shards_in(store)
    num_images, num_bytes = sum(s.samples for s in shards), sum(s.bytes for s in shards)
    base, rows = next(iter(taken)), []
    for name, seconds in taken.items():
        row = {**head, "case": name, "images_per_s": rate(seconds, num_images)}
        row["mb_per_s"] = rate(seconds, num_bytes / 1e6)
        compared = {} if name == base else against_bar(ratio(taken, name, base), BAR)
        rows.append({**row, **compared})
    return rows


def s3(root: Path, *, quick: bool) -> list[Row]:
    """From a Ceph gateway through the cache against the same number of plain parallel GETs."""
    if missing := missing_programs():
        return [{"case": f"skipped: {', '.join(missing)} not installed"}]
    source = pack_surfaces(root / "s3", SIDE, 3, 128 if quick else 2048)
    with s3_copy(source) as (store, server):
        index, client = load_index(store), server.client()

        def get(shard: ShardInfo) -> bytes:
            answer = client.get_object(Bucket=BUCKET, Key=f"set/{shard.path}")
            payload: bytes = answer["Body"].read()
            assert len(payload) == shard.bytes
            return payload

        def check(shard: ShardInfo) -> bytes:
            payload = get(shard)
            assert hashlib.sha256(payload).hexdigest() == shard.sha256
            return payload

        def keep(folder: Path, shard: ShardInfo) -> None:
            (folder / shard.sha256).write_bytes(check(shard))

        ways: dict[str, Callable[[ShardCache, Path], object]] = {
            # The length alone, so that each payload is let go of, as in `read_files`.
            "plain GETs": lambda cache, folder: for_all(index, lambda shard: len(get(shard))),
            "plain GETs, checked": lambda cache, folder: for_all(index, lambda s: len(check(s))),
            "plain GETs, checked and kept": lambda cache, folder: for_all(
                index, functools.partial(keep, folder)
            ),
            "cache alone": lambda cache, folder: for_all(index, lambda s: cache.open(s).close()),
            "stream": lambda cache, folder: stream_pass(Undecoded(cache, index)),
        }
        # What client and server take together: on full processors times are in proportion to it.
        cpu: Taken = {name: [] for name in ways}

        def timed(name: str) -> float:
            before_s = time.process_time() + server.cpu_s()
            taken_s = in_new_cache(store, root, ways[name])
            cpu[name].append(time.process_time() + server.cpu_s() - before_s)
            return taken_s

        taken = in_turns({n: functools.partial(timed, n) for n in ways}, 1 if quick else 9)
        rows = transfer_rows(taken, store, {})
        for row, spent in zip(rows, cpu.values(), strict=True):
            row["cpu_s"] = round(statistics.median(spent[1:]), 2)
        return rows


def for_all(index: DatasetIndex, function: Callable[[ShardInfo], object]) -> None:
    """Call a function for all shards, with as many threads as the stream fetches with."""
    with ThreadPoolExecutor(NUM_FETCHERS) as pool:
        list(pool.map(function, index.shards_of(SPLIT, SIDE)))


def in_new_cache(store: Store, root: Path, function: Callable[[ShardCache, Path], object]) -> float:
    """Seconds of a call with an empty cache, whose folder it is told as well."""
    with tempfile.TemporaryDirectory(dir=root) as folder:
        cache = ShardCache(store, folder=folder)
        started_s = time.perf_counter()
        function(cache, Path(folder))
        return time.perf_counter() - started_s


@contextmanager
def s3_copy(source: Store) -> Iterator[tuple[Store, CephServer]]:
    """The shards on a server of our own."""
    with (
        tempfile.TemporaryDirectory(prefix="ceph-", ignore_cleanup_errors=True) as folder,
        CephServer(Path(folder)) as server,
        patch.dict(os.environ, server.env),
    ):
        client = server.client()
        for path in [INDEX_NAME, *(shard.path for shard in shards_in(source))]:
            client.put_object(Bucket=BUCKET, Key=f"set/{path}", Body=source.read_bytes(path))
        yield Store(f"s3://{BUCKET}/set"), server
