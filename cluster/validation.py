"""How well a model in training tells validation images apart, by a short latent search."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from cluster.assessment import fade_of
from cluster.config import Config
from cluster.engine import search_settings
from cluster.errors import UserError
from cluster.training_data import dataset_store
from data.dataset import DatasetIndex
from data.sample import Sample
from data.shards import read_shard
from data.stream import normalise
from gan.evidence import (
    anomaly_map,
    gather_evidence,
    map_names,
    statistics,
    strongest_window,
)
from gan.fusion import fit_fusion
from gan.layers import downsample, faded
from gan.model import Architecture
from gan.networks import num_stages
from gan.schedule import Phase
from gan.search import latent_search
from gan.search_loss import SearchLoss, SearchSettings
from gan.starts import Starts
from gan.state import TrainingState


class Validator:
    """Scores the same validation images whenever it is asked.

    Attributes:
        measure: Digest of those images' keys and of the search: only AUROCs with the same one can
            be compared.

    Args:
        config: Configuration of the run.
        index: Index of its data set.
        architecture: What is trained.
        device: Where to search.

    Raises:
        UserError: If the images chosen do not hold both normal and abnormal ones.
    """

    def __init__(
        self,
        config: Config,
        index: DatasetIndex,
        architecture: Architecture,
        device: torch.device,
    ) -> None:
        known = _first_labelled(config, index)
        self._abnormal = np.array([sample.label == "abnormal" for sample in known])
        if not self._abnormal.any() or self._abnormal.all():
            raise UserError(
                f"{config.data.uri}: the first {len(known)} labelled validation images are not "
                "of both labels; raise tracking.validation_images or set it to 0"
            )
        stacked = np.stack([sample.image.transpose(2, 0, 1) for sample in known])
        self._images = normalise(torch.from_numpy(stacked)).to(device)
        self._keys = [sample.key for sample in known]
        self._architecture = architecture
        self._last_stage = num_stages(index.resolution) - 1
        self._search, self._seed = config.search, config.run.seed
        self._alpha = config.objective.alpha
        # How many searches run at a time changes no score.
        asked = json.dumps([self._keys, config.search.model_dump(exclude={"batch"})])
        self.measure = hashlib.sha256(asked.encode()).hexdigest()

    def auroc(self, state: TrainingState, phase: Phase) -> float:
        """Area under the ROC curve of `search.statistic`, at the resolution now trained."""
        fade = fade_of(state, phase)
        images = self._images
        for _ in range(self._last_stage - phase.stage):
            images = downsample(images)
        images = faded(images, phase.stage, fade)
        num_levels = self._architecture.num_levels(phase.stage)
        settings = settings_at(num_levels, search_settings(self._search))
        stage, features = phase.stage, state.judge.features
        # The encoder comes after training: for now its start is a candidate or a random one.
        starts = Starts(
            SearchLoss(state.average, features, settings, stage, fade),
            restarts=self._search.restarts,
            candidates=self._search.candidates,
            seed=self._seed,
        )(self._keys, images)
        found = latent_search(
            state.average, features, images, starts, settings, stage=stage, fade=fade
        )
        scores, terms = [], []
        # Block by block, so that maps of all images never exist at once.
        for first in range(0, len(images), settings.block):
            rows = slice(first, first + settings.block)
            part = found.part(rows)
            against = gather_evidence(
                state.judge,
                images[rows],
                part.reconstruction,
                stage=stage,
                fade=fade,
                contrast_side=self._search.local_contrast,
            )
            maps = anomaly_map(against, settings)
            window = self._search.window
            windowed = self._search.statistic == "window"
            scores.append(strongest_window(maps, window) if windowed else part.score)
            terms.append(statistics(against, window=window))
        values = torch.cat(scores).cpu().numpy()
        if self._search.statistic == "fused":
            names = map_names(
                num_levels,
                self._architecture.num_heads,
                with_contrast=self._search.local_contrast > 0,
            )
            values = self._fused(names, torch.cat(terms).cpu().numpy())
        return float(roc_auc_score(self._abnormal, values))

    def _fused(self, names: tuple[str, ...], terms_NK: NDArray[np.float32]) -> NDArray[np.float64]:
        """The fused score, fitted on the very images: as good a guess for each model compared."""
        images = terms_NK[:, None]
        normal, abnormal = (list(images[self._abnormal == is_it]) for is_it in (False, True))
        return fit_fusion(names, normal, abnormal, alpha=self._alpha).scores(terms_NK)


def _first_labelled(config: Config, index: DatasetIndex) -> list[Sample]:
    """The first labelled validation images; shards are mixed at random, so a fair draw."""
    store, wanted = dataset_store(config), config.tracking.validation_images
    known: list[Sample] = []
    for shard in index.shards_of("validation"):
        if len(known) == wanted:
            break
        samples = read_shard(store.read_bytes(shard.path), shard).samples
        labelled = [sample for sample in samples if sample.label != "unlabelled"]
        known += labelled[: wanted - len(known)]
    return known


def settings_at(num_levels: int, settings: SearchSettings) -> SearchSettings:
    """The settings with feature levels that a stage has.

    A level that comes with a later stage is replaced by the nearest one there is.
    """
    levels = (max(-num_levels, min(i, num_levels - 1)) for i in settings.feature_levels)
    return replace(settings, feature_levels=tuple(levels))
