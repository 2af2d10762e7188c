"""The command `pack`: images of a source become a packed data set."""

from cluster.config import Config
from cluster.progress import progress_bar
from data.dataset import DatasetIndex
from data.importers import image_folders, mnist_subset
from data.pack import pack
from data.sample import Sample
from data.store import Store
from data.synthetic import synthetic_surfaces

DIGITS = "digits"
SURFACES = "surfaces"
CONTAMINATION = 0.2
"""Share of abnormal images among the normal training images of the two built-in sets."""


def pack_dataset(config: Config) -> int:
    """Pack `pack.source` into `data.uri`; the command `pack`.

    Raises:
        DataError: If the source does not make a data set.
    """
    index = write_dataset(config)
    for split, labels in index.labels.items():
        counts = ", ".join(f"{count} {label}" for label, count in labels.items())
        print(f"{split}: {counts}")
    print(f"data set: {Store(config.data.uri).uri}, {len(index.shards)} shards")
    return 0


def write_dataset(config: Config) -> DatasetIndex:
    """Pack `pack.source` into `data.uri` and return the index."""
    samples, contamination = _read(config)
    with progress_bar("pack", total=None, unit="shard") as bar:

        def progress(written: int, total: int) -> None:
            bar.total = total
            bar.update(written - bar.n)

        return pack(
            samples,
            Store(config.data.uri),
            resolution=config.networks.resolution,
            name=config.pack.source.rstrip("/").rsplit("/", 1)[-1],
            seed=config.run.seed,
            shard_samples=config.pack.shard_samples,
            contamination=contamination,
            source=config.pack.source,
            progress=progress,
        )


def _read(config: Config) -> tuple[list[Sample], float | None]:
    resolution, seed = config.networks.resolution, config.run.seed
    if config.pack.source == DIGITS:
        return mnist_subset(seed, contamination=CONTAMINATION), CONTAMINATION
    if config.pack.source == SURFACES:
        samples = synthetic_surfaces(resolution=resolution, seed=seed, contamination=CONTAMINATION)
        return samples, CONTAMINATION
    return image_folders(Store(config.pack.source), resolution=resolution, seed=seed), None
