"""How a run reads its data set."""

from cluster.config import Config
from data.dataset import DatasetIndex
from data.patience import PatientStore
from data.reader import SplitReader
from data.sample import Split
from data.shard_cache import ShardCache
from data.store import Store


def dataset_store(config: Config) -> PatientStore:
    """The data set, asked again for `data.retry_s` where it does not answer."""
    return PatientStore(config.data.uri, config.data.retry_s)


def run_store(config: Config) -> PatientStore:
    """The run directory, likewise."""
    return PatientStore(config.run.dir, config.data.retry_s)


def open_cache(config: Config) -> ShardCache:
    """The shards of the data set on this machine."""
    data = config.data
    return ShardCache(
        # The cache has the patience itself.
        Store(data.uri),
        folder=data.cache_dir,
        limit_bytes=int(data.cache_gib * 2**30),
        retry_s=data.retry_s,
    )


def open_split(
    config: Config,
    cache: ShardCache,
    index: DatasetIndex,
    split: Split,
    resolution: int,
    *,
    lanes: int,
    masks: bool = False,
) -> SplitReader:
    """The images of one split; with a lane for each place of a batch, see data.partition."""
    return SplitReader(
        cache,
        index,
        split,
        resolution,
        lanes=lanes,
        seed=config.run.seed,
        symmetries=config.data.symmetries,
        max_bad_fraction=config.data.max_bad_fraction,
        masks=masks,
    )
