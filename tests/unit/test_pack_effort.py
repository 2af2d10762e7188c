"""What packing does for each unit does not grow with the units done before."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from cluster.config import load_config
from cluster.pack import write_dataset
from data import pack_finish
from data.errors import DataError
from data.pack import pack
from data.pack_records import UnitRecord
from data.sample import Sample, encode_png
from data.store import Store

NUM = 30


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many records each comparison of their channels looks at."""
    counts: list[int] = []
    real = pack_finish.common_channels

    def counting(records: Iterable[UnitRecord]) -> int | None:
        listed = list(records)
        counts.append(len(listed))
        return real(listed)

    for module in ("cluster.pack", "data.pack"):
        monkeypatch.setattr(f"{module}.common_channels", counting)
    return counts


def _source(folder: Path) -> Store:
    store = Store(str(folder))
    for number in range(NUM):
        image = np.full((4, 4, 1), 8 * number, np.uint8)
        store.write_bytes(f"good/{number:02d}.png", encode_png(image))
    return store


def _pack(source: Store, dest: Path) -> None:
    settings = {"pack.source": source.uri, "data.uri": str(dest), "pack.shard_samples": 1}
    write_dataset(load_config(None, settings | {"networks.resolution": 4}))


def test_a_unit_is_compared_with_one_other(tmp_path: Path, compared: list[int]) -> None:
    _pack(_source(tmp_path / "source"), tmp_path / "command")
    assert len(compared) == NUM
    assert max(compared) == 2
    compared.clear()
    image = np.zeros((4, 4, 1), np.uint8)
    names = [f"s{number}" for number in range(NUM)]
    samples = [Sample(n, image, "normal", "test", n, "good", "test") for n in names]
    store = Store(str(tmp_path / "here"))
    pack(samples, store, resolution=4, name="n", seed=0, shard_samples=1)
    assert len(compared) == NUM
    assert max(compared) == 2


def test_channels_that_differ_end_the_work_wherever_they_come(
    tmp_path: Path, compared: list[int]
) -> None:
    source = _source(tmp_path / "source")
    source.write_bytes("good/07.png", encode_png(np.zeros((4, 4, 3), np.uint8)))
    with pytest.raises(DataError, match=r"mixed channels: good-\d\d has 1, good-07 has 3"):
        _pack(source, tmp_path / "out")
    assert 1 < len(compared) < NUM
    assert not Store(str(tmp_path / "out")).list("units/")
