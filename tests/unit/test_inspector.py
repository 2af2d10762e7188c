"""Regions, counts of pixels and the files of an inspection."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.dataset
import pytest

from cluster.assembly import Scored
from cluster.errors import UserError
from cluster.inspection_files import (
    finished_units,
    read_damaged,
    read_failed,
    read_scores,
    scores_path,
    write_unit,
)
from cluster.inspector import count_pixels, find_regions
from cluster.pixel_metrics import bin_of
from data.sample import Label, Sample
from data.store import Store


def test_regions_have_box_area_and_peak_strongest_first() -> None:
    level = np.zeros((8, 10), np.float32)
    level[1:3, 2:5] = 0.6
    level[6, 7] = 0.9
    level[6, 1] = 0.49
    strong, weak = find_regions(level)
    assert strong == {
        "x": 7,
        "y": 6,
        "width": 1,
        "height": 1,
        "area": 1,
        "peak": pytest.approx(0.9),
    }
    assert weak == {"x": 2, "y": 1, "width": 3, "height": 2, "area": 6, "peak": pytest.approx(0.6)}


def test_pixels_that_touch_at_a_corner_are_one_region() -> None:
    """As in AUPRO: else a thin slanting scratch would be as many regions as pixels."""
    (scratch,) = find_regions(np.eye(6, dtype=np.float32))
    assert (scratch["width"], scratch["height"], scratch["area"]) == (6, 6, 6)


def test_quiet_map_has_no_region() -> None:
    assert find_regions(np.full((4, 4), 0.4, np.float32)) == []


def _scored_image(label: Label, mask: np.ndarray | None, level: float) -> Scored:
    image = np.zeros((4, 4, 1), np.uint8)
    sample = Sample("a", image, label, "a.png", "part", "x", "test", mask)
    return Scored(sample, image, np.full((4, 4), level, np.float32), {})


def test_pixels_are_counted_where_it_is_known_what_they_show() -> None:
    spot, clear = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    spot[1, 1:3] = True
    found = [
        _scored_image("normal", None, 0.2),
        _scored_image("normal", clear, 0.2),
        _scored_image("abnormal", spot, 1.0),
        _scored_image("abnormal", clear, 1.0),  # an empty mask says nothing of a defect
        _scored_image("abnormal", None, 1.0),
        _scored_image("unlabelled", spot, 1.0),
    ]
    counts = count_pixels(found, map_scale=2.0)
    assert (counts.num_images, counts.num_without_mask) == (3, 2)
    normal, abnormal, overlap = (each.sum(axis=0) for each in counts.histograms)
    weak, strong = bin_of(np.array([0.1, 0.5]))
    assert {i: normal[i] for i in np.flatnonzero(normal)} == {weak: 32, strong: 14}
    assert {i: abnormal[i] for i in np.flatnonzero(abnormal)} == {strong: 2}
    assert overlap[strong] == overlap.sum() == pytest.approx(1.0)


def _scored(key: str, **columns: Any) -> dict[str, Any]:
    """A row of the scores as the inspector makes it."""
    row = {
        "key": key,
        "source": f"{key}.png",
        "label": "normal",
        "kind": "good",
        "group": key,
        "height": 8,
        "width": 8,
        "score": 0.5,
        "residual": 0.4,
        "feature": 0.6,
        "logit": -0.25,
        "peak": 0.9,
        "terms": [[0.1, 0.2], [0.3, 0.4]],
        "steps": 5,
        "best_step": 4,
        "tiles": 1,
        "p_value": 0.3,
        "decision": "normal",
        "pictures": False,
        "regions": [],
    }
    return row | columns


def _failed(*keys: str) -> list[dict[str, str]]:
    return [{"key": key, "source": "s", "reason": "r"} for key in keys]


def test_failed_inputs_of_an_unfinished_unit_do_not_count(tmp_path: Path) -> None:
    out = Store(str(tmp_path))
    write_unit(out, "one", [_scored("a")], _failed("b"))
    write_unit(out, "two", [_scored("d")], _failed("c"), intact=False)
    out.delete(scores_path("two"))
    assert finished_units(out) == ["one"]
    assert read_failed(out) == _failed("b")
    assert read_damaged(out) == []
    assert read_scores(out)["unit"].tolist() == ["one"]


def test_unit_done_again_after_its_shard_came_back_has_every_image_once(tmp_path: Path) -> None:
    out = Store(str(tmp_path))
    write_unit(out, "one", [], _failed("test/1.tar#0", "test/1.tar#1"), intact=False)
    out.delete(scores_path("one"))  # as if killed before the scores were written
    write_unit(out, "one", [_scored("a"), _scored("b")], [])
    assert read_scores(out)["key"].tolist() == ["a", "b"]
    assert read_failed(out) == []
    assert read_damaged(out) == []


def test_scores_folder_is_one_table_for_any_reader(tmp_path: Path) -> None:
    region = {"x": 1, "y": 2, "width": 3, "height": 4, "area": 5, "peak": 0.75}
    out = Store(str(tmp_path))
    write_unit(out, "one", [_scored("a")], [])
    write_unit(out, "two", [], _failed("c"))
    write_unit(out, "three", [_scored("b", regions=[region])], [])
    by_pandas = pd.read_parquet(tmp_path / "scores").sort_values("key", ignore_index=True)
    by_arrow = pyarrow.dataset.dataset(tmp_path / "scores").to_table().sort_by("key")
    assert by_arrow.to_pylist() == [_scored("a"), _scored("b", regions=[region])]
    assert list(by_pandas.columns) == list(_scored("a"))
    assert by_pandas["key"].tolist() == ["a", "b"]
    assert [list(regions) for regions in by_pandas["regions"]] == [[], [region]]


def test_image_scored_twice_is_an_error(tmp_path: Path) -> None:
    for unit in ("one", "two"):
        write_unit(Store(str(tmp_path)), unit, [_scored("a")], [])
    with pytest.raises(UserError, match="scores image 'a' twice"):
        read_scores(Store(str(tmp_path)))
