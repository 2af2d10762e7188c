"""A calibrated model and a packed data set, both small, inspected in this process without Ray."""

import hashlib
from pathlib import Path
from typing import Any

import torch

from cluster.config import Config, load_config
from cluster.inspection import calibrate
from cluster.inspector import Inspector
from cluster.model_store import save_model
from data.dataset import DatasetIndex, ShardInfo, save_index
from data.preparation import Preparation
from data.sample import Sample, Split
from data.shards import write_shard
from data.store import Store
from data.synthetic import machined_surface
from gan.model import Architecture

SIDE = 16
SHARD_SAMPLES = 12
NUM_SHARDS: dict[Split, int] = {"validation": 2, "test": 3}


def contents(out: Store, *but: str) -> dict[str, bytes]:
    """All files of a folder whose paths do not begin so."""
    return {path: out.read_bytes(path) for path in out.list() if not path.startswith(but)}


def calibrated(folder: Path, preparation: Preparation, **settings: Any) -> Config:
    """Pack, write a model with random weights and calibrate it; see `inspect_here`."""
    overrides = {
        "data.uri": str(folder / "data"),
        "run.dir": str(folder / "run"),
        "inspect.false_positive_rate": 0.3,
        "inspect.num_maps": 1,
        "search.steps": 2,
        "search.batch": 8,
        "networks.resolution": SIDE,
    }
    config = load_config(None, overrides | settings)
    _write_dataset(Store(config.data.uri), preparation)
    architecture = Architecture(
        resolution=SIDE, channels=1, latent_dim=8, fmap_base=16, fmap_max=8, group_size=2
    )
    torch.manual_seed(0)
    save_model(
        Store(config.run.dir),
        architecture,
        architecture.generator(),
        architecture.discriminator(),
        preparation=preparation,
        objective=config.objective,
        images_seen=0,
    )
    calibrate(with_inspect(config, split="validation"))
    return config


def inspect_here(job: Any, units: list[Any], config: Config) -> list[Any]:
    """What takes the place of `cluster.inspection.run_units`."""
    inspector = Inspector(job)
    return [inspector.inspect(unit) for unit in units]


def with_inspect(config: Config, **changes: Any) -> Config:
    """The configuration with other fields of its section inspect."""
    return config.model_copy(update={"inspect": config.inspect.model_copy(update=changes)})


def _write_dataset(store: Store, preparation: Preparation) -> None:
    shards = []
    for split, num in NUM_SHARDS.items():
        for number in range(num):
            samples = [sample(split, number, i) for i in range(SHARD_SAMPLES)]
            payload, path = write_shard(samples), f"{split}/{SIDE}/{number:05d}.tar"
            store.write_bytes(path, payload)
            digest = hashlib.sha256(payload).hexdigest()
            facts = {"samples": SHARD_SAMPLES, "bytes": len(payload), "sha256": digest}
            shards.append(ShardInfo(path=path, split=split, resolution=SIDE, **facts))
    index = DatasetIndex(
        name="parts",
        **dict(preparation),
        resolutions=(SIDE,),
        shards=tuple(shards),
        labels={},
        kinds={},
        seed=0,
    )
    save_index(store, index)


def sample(split: Split, shard: int, i: int) -> Sample:
    """Every third image is abnormal, every second of those without a mask."""
    abnormal, seed = i % 3 == 0, 100 * shard + i + 1000 * (split == "test")
    image, mask = machined_surface(seed, SIDE, SIDE, defect=abnormal)
    key = f"{split}-{shard}-{i}"
    label = "abnormal" if abnormal else "normal"
    known = mask if i % 6 == 0 else None
    return Sample(key, image, label, f"{key}.png", key, "pit", split, known)
