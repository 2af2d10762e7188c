"""Inspection of a data set of tiles, with a model of tiles cut at another overlap."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster import inspect_plan, inspection
from cluster.calibration import calibration_for
from cluster.config import Config
from cluster.engine import Engine
from cluster.errors import UserError
from cluster.inputs import find_inputs
from cluster.inspect_plan import probe
from cluster.inspection import inspect_split
from cluster.inspection_files import inspection_store, read_failed, read_scores
from cluster.model_store import load_card
from data.dataset import load_index
from data.item import Item
from data.pack import pack
from data.sample import Split, encode_png
from data.shards import read_shard, write_shard
from data.store import Store
from data.synthetic import machined_surface
from tests.inspecting import inspect_here, with_inspect
from tests.tiny_model import NATIVE, SIDE, calibrated_model, model_config

OVERLAP, NUM_TILES = 8, 16
SPLITS: dict[Split, int] = {"train-normal": 2, "train-abnormal": 2, "test": 3}


def _item(split: Split, number: int) -> Item:
    label = "abnormal" if split == "train-abnormal" else "normal"
    read = partial(machined_surface, number, NATIVE, NATIVE, defect=label == "abnormal")
    return Item(f"{split}-{number}", read, label, "x", f"{split}-{number}", f"{number}.png", split)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setattr(inspection, "run_units", inspect_here)
    store = Store(str(tmp_path / "data"))
    items = [_item(split, number) for split, num in SPLITS.items() for number in range(num)]
    pack(items, store, resolution=SIDE, name="x", seed=0, mode="tiles", tile_overlap=OVERLAP)
    config = model_config(str(tmp_path / "run"))
    calibrated_model(config, "tiles")
    return config.model_copy(update={"data": config.data.model_copy(update={"uri": store.uri})})


def test_an_image_without_one_of_its_tiles_fails_though_others_cover_it(config: Config) -> None:
    store = Store(config.data.uri)
    (shard,) = load_index(store).shards_of("test")
    samples = read_shard(store.read_bytes(shard.path)).samples
    inner = next(s for s in samples if s.tile and 0 < s.tile.y < 24 and 0 < s.tile.x < 24)
    assert inner.tile
    store.write_bytes(shard.path, write_shard(s for s in samples if s is not inner))
    manifest = inspect_split(config, calibration_for(config))
    table, failed = (read(inspection_store(config)) for read in (read_scores, read_failed))
    assert (manifest["images"], manifest["failed"]) == (2, NUM_TILES)
    assert inner.tile.parent not in set(table["key"])
    assert set(table["tiles"]) == {NUM_TILES}
    told = f"the tile at y={inner.tile.y}, x={inner.tile.x} is missing, 1 of {NUM_TILES}"
    assert sum(row["reason"].endswith(told) for row in failed) == NUM_TILES - 1


@pytest.mark.parametrize(("plain", "tiles"), [(False, 1), (True, 9 * 2 / 3)])
def test_a_dry_run_counts_the_tiles_of_an_input(
    config: Config, plain: bool, tiles: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sample of a shard is one; of a folder's three images one is unreadable."""
    if plain:
        for number in range(2):
            image, _ = machined_surface(number, NATIVE, NATIVE, defect=False)
            Store(str(tmp_path / "in")).write_bytes(f"{number}.png", encode_png(image))
        Store(str(tmp_path / "in")).write_bytes("torn.png", b"")
        config = with_inspect(config, source=str(tmp_path / "in"))
    (unit,) = find_inputs(config, load_card(Store(config.run.dir))).units
    clock = iter([0.0, float(config.search.batch)])
    monkeypatch.setattr(inspect_plan, "time", SimpleNamespace(monotonic=clock.__next__))
    monkeypatch.setattr(Engine, "score", lambda *_: [])
    assert probe(config, unit).input_s == pytest.approx(tiles)


@pytest.mark.parametrize("split", ["train-normal", "train-abnormal"])
def test_tiles_of_training_count_by_themselves(config: Config, split: Split) -> None:
    """Of abnormal training images only those tiles are there that show the defect."""
    shards = load_index(Store(config.data.uri)).shards_of(split)
    num_tiles = sum(shard.samples for shard in shards)
    assert split == "train-normal" or 0 < num_tiles < 2 * NUM_TILES
    config = with_inspect(config, split=split)
    manifest = inspect_split(config, calibration_for(config))
    assert (manifest["images"], manifest["failed"]) == (num_tiles, 0)


def test_a_model_of_whole_images_takes_no_tiles(config: Config) -> None:
    card = calibrated_model(config, "whole").card
    with pytest.raises(UserError, match=r"packed with mode=tiles, .* with whole; inspect the im"):
        find_inputs(config, card)
