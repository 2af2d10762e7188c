"""What one unit of an inspection reads, whatever became of its shard."""

from pathlib import Path

import pytest

from cluster.inputs import ShardInputs
from data.errors import StoreError
from data.pack import pack
from data.store import Store
from tests.inspecting import SIDE, sample


@pytest.fixture
def unit(tmp_path: Path) -> ShardInputs:
    """A shard of six samples."""
    store = Store(str(tmp_path))
    samples = [sample("test", 0, i) for i in range(6)]
    (shard,) = pack(samples, store, resolution=SIDE, name="parts", seed=0).shards
    return ShardInputs(store, shard)


def test_samples_of_a_shard_that_cannot_be_read_are_accounted_for(unit: ShardInputs) -> None:
    assert len(unit.read().samples) == 6
    path = unit.dataset.local_path(unit.shard.path)
    path.unlink()
    path.mkdir()
    contents = unit.read()
    assert not contents.samples
    assert not contents.checksum_ok
    assert [row.key for row in contents.damage] == [f"{unit.shard.path}#{n}" for n in range(6)]
    assert "Is a directory" in contents.damage[0].reason
    path.rmdir()
    assert [row.reason[:5] for row in unit.read().damage] == ["lost:"] * 6


def test_a_store_that_fails_says_nothing_about_a_shard(
    unit: ShardInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bytes:
        raise StoreError("too many open files")

    monkeypatch.setattr(Store, "read_bytes", fail)
    with pytest.raises(StoreError):
        unit.read()
