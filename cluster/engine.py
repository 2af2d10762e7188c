"""One frozen model that scores images, for the batch job and the endpoint alike."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cluster.assembly import Scored
from cluster.model_store import Model
from cluster.pictures import to_uint8
from cluster.search_config import Search
from data.sample import Sample
from data.stream import normalise
from gan.evidence import (
    Evidence,
    anomaly_map,
    fused_map,
    gather_evidence,
    statistics,
    strongest_window,
)
from gan.fusion import Fusion
from gan.model import place
from gan.networks import num_stages
from gan.search import SearchResult, latent_search
from gan.search_loss import SearchLoss, SearchSettings, fill
from gan.starts import Starts

_BLOCKS = 16
"""Blocks of images that a search is given at once, to go on with when an image is done."""


def search_settings(search: Search) -> SearchSettings:
    """Settings of the search as the method takes them."""
    return SearchSettings(
        steps=search.steps,
        step_size=search.step_size,
        feature_weight=search.feature_weight,
        feature_levels=search.feature_levels,
        patience=search.patience,
        tolerance=search.tolerance,
        dtype=getattr(torch, search.precision),
        block=search.batch,
    )


class Engine:
    """Scores samples with one model; nothing of a result depends on what else is scored.

    Args:
        model: What to score with.
        search: How to search, and what the score is.
        seed: Seed of the starting latents.
        fusion: How terms become the score `fused`; None while it is not known: L stands for it.
        device: What to compute on; None: a GPU if there is one.
    """

    def __init__(
        self,
        model: Model,
        search: Search,
        *,
        seed: int,
        fusion: Fusion | None = None,
        device: torch.device | None = None,
    ) -> None:
        self._device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._generator = place(model.generator, self._device)
        self._discriminator = place(model.discriminator, self._device)
        self._resolution = model.architecture.resolution
        self._channels = model.architecture.channels
        self._stage = num_stages(self._resolution) - 1
        self._search, self._fusion = search, fusion
        self._settings = search_settings(search)
        encoder = model.encoder if search.encoder else None
        self.starts = Starts(
            SearchLoss(self._generator, self._discriminator.features, self._settings, self._stage),
            restarts=search.restarts,
            candidates=search.candidates,
            seed=seed,
            encoder=encoder and place(encoder, self._device),
        )

    def unfit(self, sample: Sample) -> str | None:
        """Why the model cannot take a sample; None if it can."""
        wanted = (self._resolution, self._resolution, self._channels)
        if sample.image.shape == wanted:
            return None
        return f"image is {list(sample.image.shape)}, the model takes {list(wanted)}"

    def score(self, samples: list[Sample]) -> list[Scored]:
        """Score samples, each on its own; those of one image are not put together here."""
        size = _BLOCKS * self._settings.block
        chunks = [samples[i : i + size] for i in range(0, len(samples), size)]
        return [scored for chunk in chunks for scored in self._search_all(chunk)]

    def _search_all(self, samples: list[Sample]) -> list[Scored]:
        stacked = np.stack([sample.image.transpose(2, 0, 1) for sample in samples])
        images = normalise(torch.from_numpy(stacked))
        found = None if self.starts.are_ends else self._searched(samples, images)
        scored, block = list[Scored](), self._settings.block
        # Maps block by block: their features would fill the memory.
        for first in range(0, len(samples), block):
            rows = slice(first, first + block)
            part = found and found.part(rows).to(self._device)
            scored += self._judge(samples[rows], images[rows].to(self._device), part)
        return scored

    def _searched(self, samples: list[Sample], images: Tensor) -> SearchResult:
        return latent_search(
            self._generator,
            self._discriminator.features,
            images,
            self.starts([sample.key for sample in samples], images),
            self._settings,
            stage=self._stage,
        )

    def _judge(
        self, samples: list[Sample], image: Tensor, found: SearchResult | None
    ) -> list[Scored]:
        # In blocks of one size, like the search: the last bit of a score could else tell how many
        # images there were.
        block = self._settings.block
        image = fill(image, block)
        with torch.no_grad():
            levels = self._discriminator.features(image, self._stage)
        found = found or self.starts.nearest(image, levels).part(slice(len(samples)))
        against = gather_evidence(
            self._discriminator,
            image,
            fill(found.reconstruction, block),
            stage=self._stage,
            contrast_side=self._search.local_contrast,
            query=levels,
        )
        maps = self._maps(against)[: len(samples)]
        terms = statistics(against, window=self._search.window)[: len(samples)]
        columns: dict[str, list[Any]] = {
            "score": self._scores(found, maps, terms),
            "terms": [[row] for row in terms.tolist()],
            "residual": found.residual.tolist(),
            "feature": found.feature.tolist(),
            "logit": (-against.verdict()).tolist(),
            "steps": found.steps.tolist(),
            "best_step": found.step.tolist(),
            "peak": maps.amax(dim=(1, 2)).tolist(),
        }
        made = to_uint8(found.reconstruction)
        pixels: NDArray[np.float32] = maps.cpu().numpy()
        return [
            Scored(
                sample,
                made[i],
                pixels[i],
                _facts(sample) | {name: values[i] for name, values in columns.items()},
            )
            for i, sample in enumerate(samples)
        ]

    def _maps(self, against: Evidence) -> Tensor:
        if self._search.statistic == "fused" and self._fusion:
            with_logit = self._search.logit_in_map
            return fused_map(against, self._fusion.map_weights(with_logit=with_logit))
        return anomaly_map(against, self._settings)

    def _scores(self, found: SearchResult, maps: Tensor, terms: Tensor) -> list[float]:
        if self._search.statistic == "fused" and self._fusion:
            return [float(score) for score in self._fusion.scores(terms.cpu().numpy())]
        windowed = self._search.statistic == "window"
        scores = strongest_window(maps, self._search.window) if windowed else found.score
        return [float(score) for score in scores]


def _facts(sample: Sample) -> dict[str, Any]:
    """What a row of the scores says of the image itself, and what is decided later."""
    height, width, _ = sample.image.shape
    return {
        "key": sample.key,
        "source": sample.source,
        "label": sample.label,
        "kind": sample.kind,
        "group": sample.group,
        "height": height,
        "width": width,
        "tiles": 1,
        "p_value": None,
        "decision": None,
        "pictures": False,
        "regions": [],
    }
