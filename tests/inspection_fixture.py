"""A finished inspection without a model or Ray: plausible scores, pictures and failed inputs."""

import json
from typing import Any

import numpy as np
import pandas as pd

from cluster.inspection_files import MANIFEST, picture_path, write_unit
from cluster.inspector import find_regions
from cluster.pictures import encode_map, overlay
from data.sample import encode_png
from data.store import Store
from data.synthetic import machined_surface

THRESHOLD = 0.5
FAILED = [
    {"key": "part-900", "source": "line/part-900.png", "reason": "cannot identify image file"},
    {"key": "evil", "source": "<script>alert(1)</script>", "reason": "a < b & c"},
]
_KINDS = ("scratch", "pit", "stain")


def write_inspection(
    out: Store,
    *,
    num_images: int = 40,
    resolution: int = 32,
    channels: int = 1,
    labelled: bool = True,
    calibrated: bool = True,
    review_from: float | None = None,
    num_pictured: int | None = None,
    unit_size: int = 20,
    failed: list[dict[str, str]] = FAILED,
) -> pd.DataFrame:
    """Write an inspection; every third image is abnormal.

    Image 0 is an anomaly that was missed, image 1 a normal image with a false alarm. Pictures are
    written for all images or the first `num_pictured`; scores from `review_from` to the threshold
    are for review.
    """
    rows = [_row(i, resolution, labelled) for i in range(num_images)]
    for i, row in enumerate(rows):
        if calibrated:
            _decide(row, THRESHOLD if review_from is None else review_from)
            row["pictures"] = num_pictured is None or i < num_pictured
    for start in range(0, num_images, unit_size):
        unit = f"test-{resolution}-{start // unit_size:05d}"
        chunk = rows[start : start + unit_size]
        for row in chunk:
            if row["pictures"]:
                _write_pictures(out, unit, row, channels)
        write_unit(out, unit, chunk, failed if start == 0 else [])
    band = {"low": review_from, "high": THRESHOLD}
    manifest = {
        "schema_version": 1,
        "code_version": "0.1.0",
        "run_dir": "/line/run-7",
        "data_uri": "s3://line/surfaces",
        "split": "test",
        "resolution": resolution,
        "channels": channels,
        "units": -(-num_images // unit_size),
        "images": num_images,
        "failed": len(failed),
        "damaged_shards": ["test-32-00001"],
        "seconds": 12.5,
        "images_per_s": 3.2,
        "search": {"steps": 100, "step_size": 0.05, "feature_weight": 0.1},
        "calibration": {"false_positive_rate": 0.05}
        | (
            {"threshold": THRESHOLD}
            if review_from is None
            else {"rule": "reject_band", "thresholds": {"reject_band": band}}
        )
        if calibrated
        else None,
    }
    out.write_bytes(MANIFEST, json.dumps(manifest).encode())
    return pd.DataFrame(rows)


def _row(i: int, resolution: int, labelled: bool) -> dict[str, Any]:
    abnormal = i % 3 == 0
    noise = np.random.default_rng(i).normal(0, 0.06)
    score = {0: 0.42, 1: 0.61}.get(i, (0.7 if abnormal else 0.35) + noise)
    return {
        "key": f"part-{i:03d}",
        "source": f"line/part-{i:03d}.png",
        "label": ("abnormal" if abnormal else "normal") if labelled else "unlabelled",
        "kind": _KINDS[i // 3 % 3] if abnormal else "good",
        "group": f"part-{i:03d}",
        "height": resolution,
        "width": resolution,
        "score": score,
        "residual": score,
        "feature": score,
        "peak": score,
        "steps": 100,
        "best_step": 90,
        "tiles": 1,
        "p_value": None,
        "decision": None,
        "pictures": False,
        "regions": [],
    }


def _decide(row: dict[str, Any], review_from: float) -> None:
    score = row["score"]
    row["p_value"] = round(float(np.clip(0.1 + THRESHOLD - score, 0.01, 1.0)), 3)
    row["decision"] = "abnormal" if score > THRESHOLD else "normal"
    if review_from < score <= THRESHOLD:
        row["decision"] = "review"
    if score > THRESHOLD:
        corner = row["width"] // 8
        box = {"x": corner, "y": corner + 2, "width": 9, "height": 2, "area": 14, "peak": 0.9}
        row["regions"] = [box, box | {"y": 1, "area": 9, "peak": 0.6}]


def _write_pictures(out: Store, unit: str, row: dict[str, Any], channels: int) -> None:
    key, size = row["key"], row["width"]
    seed = int(key.rpartition("-")[2])
    image, mask = machined_surface(seed, size, size, defect=row["score"] > THRESHOLD)
    clean, _ = machined_surface(seed, size, size, defect=False)
    level = np.where(mask, 0.9, 0.1).astype(np.float32)
    if row["score"] > THRESHOLD:
        row["regions"] = find_regions(level)
    pictures = {
        "image": encode_png(np.repeat(image, channels, axis=2)),
        "reconstruction": encode_png(np.repeat(clean, channels, axis=2)),
        "overlay": encode_png(overlay(image, level)),
        "map": encode_map(level, 1.0),
    }
    for what, payload in pictures.items():
        out.write_bytes(picture_path(unit, key, what), payload)
