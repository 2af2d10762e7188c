"""How well a model in training tells validation images apart, by a short latent search."""

from dataclasses import replace

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from cluster.config import Config
from cluster.errors import UserError
from cluster.inspector import search_settings, statistic
from data.dataset import DatasetIndex
from data.shards import read_shard
from data.store import Store
from data.stream import normalise
from gan.layers import downsample
from gan.networks import num_stages
from gan.schedule import Phase
from gan.scores import anomaly_map
from gan.search import SearchSettings, initial_latents, latent_search
from gan.starts import draw_candidates, nearest_starts
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
        self._search, self._seed = config.search, config.run.seed

    def auroc(self, state: TrainingState, phase: Phase) -> float:
        """Area under the ROC curve of `search.statistic`, at the resolution now trained."""
        images = self._images
        for _ in range(self._last_stage - phase.stage):
            images = downsample(images)
        settings = settings_at(phase.stage, search_settings(self._search))
        fade = phase.fade(min(state.images_seen, phase.end))
        stage, features = phase.stage, state.discriminator.features
        candidates = draw_candidates(
            state.average,
            features,
            settings,
            count=self._search.candidates,
            seed=self._seed,
            stage=stage,
            fade=fade,
        )
        scores = []
        # Block by block, so that maps of all images never exist at once.
        for block, latents in zip(
            images.split(settings.block), self._latents.split(settings.block), strict=True
        ):
            starts = latents
            if candidates:
                starts = nearest_starts(
                    features, block, candidates, settings, stage=stage, fade=fade
                )
            found = latent_search(
                state.average, features, block, starts, settings, stage=stage, fade=fade
            )
            maps = anomaly_map(features, block, found, settings, stage=stage, fade=fade)
            scores.append(statistic(found, maps, self._search))
        return float(roc_auc_score(self._abnormal, torch.cat(scores).cpu().numpy()))


def settings_at(stage: int, settings: SearchSettings) -> SearchSettings:
    """The settings with the feature levels a stage has: s of them, one at stage 0.

    A level that comes with a later stage is replaced by the nearest one there is.
    """
    num_levels = max(1, stage)
    levels = (max(-num_levels, min(i, num_levels - 1)) for i in settings.feature_levels)
    return replace(settings, feature_levels=tuple(levels))
