"""Regions, calibration and the files of an inspection."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.dataset
import pytest

from cluster.config import load_config
from cluster.errors import UserError
from cluster.inspection import fit_calibration
from cluster.inspection_files import (
    finished_units,
    read_damaged,
    read_failed,
    read_scores,
    scores_path,
    write_unit,
)
from cluster.inspector import find_regions
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


def test_quiet_map_has_no_region() -> None:
    assert find_regions(np.full((4, 4), 0.4, np.float32)) == []


def _validation(scores: list[float], labels: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"label": labels, "score": scores, "peak": np.array(scores) * 2})


def test_calibration_keeps_the_false_positive_rate_on_its_own_images() -> None:
    scores = np.random.default_rng(0).random(99).tolist()
    config = load_config(None, {"inspect.false_positive_rate": 0.1})
    calibration = fit_calibration(config, _validation(scores, ["normal"] * 99))
    assert sum(score > calibration.threshold for score in scores) == 9
    assert calibration.map_scale == pytest.approx(2 * np.quantile(scores, 0.9) * 2)
    assert calibration.f1_threshold is None


def test_f1_threshold_separates_what_can_be_separated() -> None:
    labels = ["normal"] * 30 + ["abnormal"] * 10
    scores = [*np.linspace(0, 1, 30), *np.linspace(2, 3, 10)]
    calibration = fit_calibration(load_config(None, {}), _validation(scores, labels))
    assert calibration.f1_threshold == pytest.approx(2.0)


def test_too_few_normal_images_cannot_calibrate() -> None:
    with pytest.raises(UserError, match="needs at least 19 normal validation images, there are 5"):
        fit_calibration(load_config(None, {}), _validation([0.1] * 5, ["normal"] * 5))


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
        "peak": 0.9,
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
