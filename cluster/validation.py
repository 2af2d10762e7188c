"""How well a model in training tells validation images apart, by a short latent search."""

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from cluster.config import Config
from cluster.errors import UserError
from cluster.inspector import search_settings
from data.dataset import DatasetIndex
from data.shards import read_shard
from data.store import Store
from data.stream import normalise
from gan.layers import downsample
from gan.networks import num_stages
from gan.schedule import Phase
from gan.search import initial_latents, latent_search
from gan.state import TrainingState


class Validator:
    """Scores the same validation images whenever it is asked.

    Args:
        config: Configuration of the run.
        index: Index of its data set.
        device: Where to search.

    Raises:
        UserError: If the images chosen do not hold both normal and abnormal ones.
    """

    def __init__(self, config: Config, index: DatasetIndex, device: torch.device) -> None:
        store = Store(config.data.uri)
        samples = []
        for shard in index.shards_of("validation"):
            samples += read_shard(store.read_bytes(shard.path), shard).samples
        # Shards are mixed at random, so the first images are a fair draw.
        known = [sample for sample in samples if sample.label != "unlabelled"]
        known = known[: config.tracking.validation_images]
        self._abnormal = np.array([sample.label == "abnormal" for sample in known])
        if not self._abnormal.any() or self._abnormal.all():
            raise UserError(
                f"{config.data.uri}: the first {len(known)} labelled validation images are not "
                "of both labels; raise tracking.validation_images or set it to 0"
            )
        stacked = np.stack([sample.image.transpose(2, 0, 1) for sample in known])
        self._images = normalise(torch.from_numpy(stacked)).to(device)
        keys = [sample.key for sample in known]
        latents = initial_latents(keys, config.networks.latent_dim, seed=config.run.seed)
        self._latents = latents.to(device)
        self._last_stage = num_stages(index.resolution) - 1
        self._search = config.search

    def auroc(self, state: TrainingState, phase: Phase) -> float:
        """Area under the ROC curve of L at the best latent, at the resolution now trained."""
        images = self._images
        for _ in range(self._last_stage - phase.stage):
            images = downsample(images)
        found = latent_search(
            state.average,
            state.discriminator.features,
            images,
            self._latents,
            search_settings(self._search),
            stage=phase.stage,
            fade=phase.fade(min(state.images_seen, phase.end)),
        )
        return float(roc_auc_score(self._abnormal, found.score.cpu().numpy()))
