"""The actor of the batch job: one frozen model, one search at a time."""

import threading
import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from cluster.assembly import Scored, assemble_images
from cluster.calibration import decide
from cluster.cluster_config import Cluster
from cluster.engine import Engine
from cluster.inputs import Inputs
from cluster.inspection_files import picture_path, write_unit
from cluster.model_store import Calibration, load_model
from cluster.pictures import encode_map, overlay
from cluster.pixel_metrics import EIGHT_NEIGHBOURS, PixelCounts
from cluster.search_config import Search
from data.sample import Sample, encode_png
from data.store import Store

UNITS_AT_ONCE = 2
"""Units an actor is given at a time, so that reading and writing do not hold up the search."""
REGION_LEVEL = 0.5
"""Share of the map's full scale from which a pixel belongs to a region."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every actor of an inspection is told.

    Attributes:
        run: Run directory with the model.
        out: Where results go.
        search: Search settings.
        seed: Seed of the starting latents.
        calibration: What turns scores into decisions; None while calibrating.
        num_maps: Images of each unit, at most, that get pictures.
        cluster: What an actor reserves.
        tile_overlap: Least overlap that tiles of an image were cut with, pixels.
        tiles_apart: Whether tiles count as images of their own, as they do in training.
    """

    run: Store
    out: Store
    search: Search
    seed: int
    calibration: Calibration | None
    num_maps: int
    cluster: Cluster
    tile_overlap: int
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


class Inspector:
    """Scores units with one model; created once per actor.

    Units may be inspected at once, each in a thread: one is searched while others read or write.

    Args:
        job: What to do.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self._searching, self._loading = threading.Lock(), threading.Lock()
        self._engine: Engine | None = None

    @property
    def engine(self) -> Engine:
        """The model, loaded with the first unit: of errors before, Ray tells that an actor died."""
        with self._loading:
            if self._engine is None:
                calibration = self.job.calibration
                self._engine = Engine(
                    load_model(self.job.run),
                    self.job.search,
                    seed=self.job.seed,
                    fusion=calibration.fusion if calibration else None,
                    device=self.job.cluster.device,
                )
            return self._engine

    def inspect(self, inputs: Inputs) -> UnitSummary:
        """Score one unit; every sample ends in its scores or in its failed inputs."""
        started_s = time.monotonic()
        unit, contents = inputs.name, inputs.read()
        failed = [
            {"key": d.key, "source": d.source or inputs.source, "reason": d.reason}
            for d in contents.damage
        ]
        good = list[Sample]()
        for sample in contents.samples:
            reason = self.engine.unfit(sample)
            if reason:
                failed.append({"key": sample.key, "source": sample.source, "reason": reason})
            else:
                good.append(sample)
        found, incomplete = self._score(good)
        failed += incomplete
        pixels = None
        if self.job.calibration:
            self._decide(found, self.job.calibration)
            self._draw(unit, found, self.job.calibration)
            pixels = count_pixels(found, self.job.calibration.map_scale).to_bytes()
        rows, intact = [image.row for image in found], contents.checksum_ok
        write_unit(self.job.out, unit, rows, failed, intact=intact, pixels=pixels)
        return UnitSummary(unit, len(rows), len(failed), time.monotonic() - started_s)

    def _score(self, samples: list[Sample]) -> tuple[list[Scored], list[dict[str, str]]]:
        with self._searching:
            # Ray sets one thread for each actor, and each of ours starts with that; use what was
            # reserved.
            torch.set_num_threads(self.job.cluster.num_threads)
            scored = self.engine.score(samples)
        if self.job.tiles_apart:
            return scored, []
        return assemble_images(scored, self.job.tile_overlap)

    def _decide(self, found: list[Scored], calibration: Calibration) -> None:
        decided = decide(calibration, [image.row["score"] for image in found])
        for image, columns in zip(found, decided, strict=True):
            image.row.update(columns)

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


def count_pixels(found: list[Scored], map_scale: float) -> PixelCounts:
    """Count map values on defect pixels and on others, for the metrics of pixels.

    An image called normal has no defect pixels unless its mask says so. An abnormal one without a
    mask, or with an empty one, is only counted as such; one without a label is left out.
    """
    counts = PixelCounts()
    for image in found:
        label, mask = image.sample.label, image.sample.mask
        shows_defect = mask is not None and bool(mask.any())
        if label == "normal" or (label == "abnormal" and shows_defect):
            defect = np.zeros(image.map.shape, dtype=bool) if mask is None else mask
            counts.add(image.map / map_scale, defect, image.sample.group)
        elif label == "abnormal":
            counts.num_without_mask += 1
    return counts


def find_regions(level_HW: NDArray[np.float32]) -> list[dict[str, float]]:
    """Areas of a map that stand out, connected by any of 8 neighbours, strongest first.

    Args:
        level_HW: Map as a share of its full scale.

    Returns:
        For each region its box (x, y, width, height) and area in pixels, and its peak level.
    """
    labelled, _ = ndimage.label(level_HW >= REGION_LEVEL, structure=EIGHT_NEIGHBOURS)
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
