"""The actor of the batch job: one frozen model, one shard at a time."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from cluster.assembly import Scored, assemble_images
from cluster.config import Search
from cluster.inspection_files import picture_path, unit_name, write_unit
from cluster.model_store import Calibration, load_model
from cluster.pictures import encode_map, overlay, to_uint8
from data.dataset import ShardInfo
from data.sample import Sample, encode_png
from data.shards import ShardContents, read_shard
from data.store import Store
from data.stream import normalise
from gan.model import place
from gan.networks import num_stages
from gan.scores import anomaly_map, conformal_p_values, strongest_window
from gan.search import SearchResult, SearchSettings, initial_latents, latent_search
from gan.starts import draw_candidates, nearest_starts

REGION_LEVEL = 0.5
"""Share of the map's full scale from which a pixel belongs to a region."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every actor of an inspection is told.

    Attributes:
        run: Run directory with the model.
        dataset: Packed data set.
        out: Where results go.
        search: Search settings.
        seed: Seed of the starting latents.
        calibration: What turns scores into decisions; None while calibrating.
        num_maps: Images of each shard, at most, that get pictures.
        num_threads: CPU threads of an actor.
        tiles_apart: Whether tiles count as images of their own, as they do in training.
    """

    run: Store
    dataset: Store
    out: Store
    search: Search
    seed: int
    calibration: Calibration | None
    num_maps: int
    num_threads: int
    tiles_apart: bool = False


@dataclass(frozen=True)
class UnitSummary:
    """What became of one unit.

    Attributes:
        unit: Its name.
        num_images: Images scored.
        num_failed: Inputs that could not be scored.
        elapsed_s: Time spent, in seconds.
    """

    unit: str
    num_images: int
    num_failed: int
    elapsed_s: float


def search_settings(search: Search) -> SearchSettings:
    """Settings of the search as the method takes them."""
    return SearchSettings(
        steps=search.steps,
        step_size=search.step_size,
        feature_weight=search.feature_weight,
        feature_levels=search.feature_levels,
        block=search.batch,
    )


def statistic(found: SearchResult, maps: Tensor, search: Search) -> Tensor:
    """Score of each image, float [B]: L at the best latent, or the map's strongest window."""
    if search.statistic == "window":
        return strongest_window(maps, search.window)
    return found.score


class Inspector:
    """Scores shards with one model; created once per actor.

    Args:
        job: What to do.
    """

    def __init__(self, job: Job) -> None:
        # Ray sets one thread for each actor; use what was reserved.
        torch.set_num_threads(job.num_threads)
        self.job = job
        self.model = load_model(job.run)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.generator = place(self.model.generator, self.device)
        self.features = place(self.model.discriminator, self.device).features
        self.stage = num_stages(self.model.architecture.resolution) - 1
        self.settings = search_settings(job.search)
        self.candidates = draw_candidates(
            self.generator,
            self.features,
            self.settings,
            count=job.search.candidates,
            seed=job.seed,
            stage=self.stage,
        )

    def inspect(self, shard: ShardInfo) -> UnitSummary:
        """Score one shard; every sample ends in its scores or in its failed inputs."""
        started_s = time.monotonic()
        unit = unit_name(shard)
        contents = self._read(shard)
        failed = [{"key": d.key, "source": shard.path, "reason": d.reason} for d in contents.damage]
        good = []
        for sample in contents.samples:
            reason = self._unfit(sample)
            if reason:
                failed.append({"key": sample.key, "source": sample.source, "reason": reason})
            else:
                good.append(sample)
        rows, incomplete = self._score(unit, good)
        failed += incomplete
        intact = contents.checksum_ok
        write_unit(self.job.out, unit, rows, failed, intact=intact)
        return UnitSummary(unit, len(rows), len(failed), time.monotonic() - started_s)

    def _read(self, shard: ShardInfo) -> ShardContents:
        missing = not self.job.dataset.exists(shard.path)
        # An absent shard reads as an empty one: each of its samples is accounted for as lost.
        return read_shard(b"" if missing else self.job.dataset.read_bytes(shard.path), shard)

    def _unfit(self, sample: Sample) -> str | None:
        size = self.model.architecture.resolution
        wanted = (size, size, self.model.architecture.channels)
        if sample.image.shape == wanted:
            return None
        return f"image is {list(sample.image.shape)}, the model takes {list(wanted)}"

    def _score(
        self, unit: str, samples: list[Sample]
    ) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
        batch = self.job.search.batch
        chunks = [samples[i : i + batch] for i in range(0, len(samples), batch)]
        scored = [image for chunk in chunks for image in self._search(chunk)]
        found, failed = (scored, []) if self.job.tiles_apart else assemble_images(scored)
        if self.job.calibration:
            self._decide(found, self.job.calibration)
            self._draw(unit, found, self.job.calibration)
        return [image.row for image in found], failed

    def _search(self, samples: list[Sample]) -> list[Scored]:
        stacked = np.stack([sample.image.transpose(2, 0, 1) for sample in samples])
        image = normalise(torch.from_numpy(stacked).to(self.device))
        latent = self._starts(samples, image)
        found = latent_search(
            self.generator,
            self.features,
            image,
            latent,
            self.settings,
            stage=self.stage,
        )
        maps = anomaly_map(self.features, image, found, self.settings, stage=self.stage)
        scores = statistic(found, maps, self.job.search)
        made = to_uint8(found.reconstruction)
        pixels: NDArray[np.float32] = maps.cpu().numpy()
        return [
            Scored(
                sample, made[i], pixels[i], self._row(sample, found, float(scores[i]), pixels[i], i)
            )
            for i, sample in enumerate(samples)
        ]

    def _starts(self, samples: list[Sample], image: Tensor) -> Tensor:
        if self.candidates:
            return nearest_starts(
                self.features, image, self.candidates, self.settings, stage=self.stage
            )
        keys = [sample.key for sample in samples]
        return initial_latents(keys, self.generator.latent_dim, seed=self.job.seed).to(self.device)

    def _row(
        self,
        sample: Sample,
        found: SearchResult,
        score: float,
        pixels: NDArray[np.float32],
        i: int,
    ) -> dict[str, Any]:
        height, width, _ = sample.image.shape
        return {
            "key": sample.key,
            "source": sample.source,
            "label": sample.label,
            "kind": sample.kind,
            "group": sample.group,
            "height": height,
            "width": width,
            "score": score,
            "residual": float(found.residual[i]),
            "feature": float(found.feature[i]),
            "peak": float(pixels.max()),
            "steps": self.settings.steps,
            "best_step": int(found.step[i]),
            "p_value": None,
            "decision": None,
            "pictures": False,
            "tiles": 1,
            "regions": [],
        }

    def _decide(self, found: list[Scored], calibration: Calibration) -> None:
        scores = [image.row["score"] for image in found]
        p_values = conformal_p_values(scores, calibration.normal_scores)
        for image, p_value in zip(found, p_values, strict=True):
            abnormal = p_value <= calibration.false_positive_rate
            image.row["p_value"] = float(p_value)
            image.row["decision"] = "abnormal" if abnormal else "normal"

    def _draw(self, unit: str, found: list[Scored], calibration: Calibration) -> None:
        for image in found:
            image.row["regions"] = find_regions(image.map / calibration.map_scale)
        strongest = sorted(found, key=lambda image: -image.row["score"])[: self.job.num_maps]
        for image in strongest:
            image.row["pictures"] = True
            level = np.clip(image.map / calibration.map_scale, 0.0, 1.0)
            pictures = {
                "image": encode_png(image.sample.image),
                "reconstruction": encode_png(image.reconstruction),
                "overlay": encode_png(overlay(image.sample.image, level)),
                "map": encode_map(image.map, calibration.map_scale),
            }
            for what, payload in pictures.items():
                self.job.out.write_bytes(picture_path(unit, image.sample.key, what), payload)


def find_regions(level_HW: NDArray[np.float32]) -> list[dict[str, float]]:
    """Connected areas of a map that stand out, strongest first.

    Args:
        level_HW: Map as a share of its full scale.

    Returns:
        For each region its box (x, y, width, height) and area in pixels, and its peak level.
    """
    labelled, _ = ndimage.label(level_HW >= REGION_LEVEL)
    regions = []
    for number, box in enumerate(ndimage.find_objects(labelled), start=1):
        rows, columns = box
        inside = labelled[box] == number
        regions.append(
            {
                "x": columns.start,
                "y": rows.start,
                "width": columns.stop - columns.start,
                "height": rows.stop - rows.start,
                "area": int(inside.sum()),
                "peak": float(level_HW[box][inside].max()),
            }
        )
    return sorted(regions, key=lambda region: -region["peak"])
