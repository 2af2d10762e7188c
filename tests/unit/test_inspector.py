"""Regions, calibration and the files of an inspection."""

import numpy as np
import pandas as pd
import pytest

from cluster.config import load_config
from cluster.errors import UserError
from cluster.inspection import fit_calibration
from cluster.inspection_files import finished_units, read_failed, read_scores, write_unit
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


def test_failed_inputs_of_an_unfinished_unit_do_not_count(tmp_path) -> None:
    out = Store(str(tmp_path))
    rows = pd.DataFrame({"key": ["a"], "score": [0.5]})
    write_unit(out, "one", rows, [{"key": "b", "source": "s", "reason": "r"}])
    out.write_bytes("failed/two.jsonl", b'{"key": "c", "source": "s", "reason": "r"}\n')
    assert finished_units(out) == ["one"]
    assert [row["key"] for row in read_failed(out)] == ["b"]
    assert read_scores(out)["unit"].tolist() == ["one"]


def test_image_scored_twice_is_an_error(tmp_path) -> None:
    rows = pd.DataFrame({"key": ["a"], "score": [0.5]})
    for unit in ("one", "two"):
        write_unit(Store(str(tmp_path)), unit, rows, [])
    with pytest.raises(UserError, match="scores image 'a' twice"):
        read_scores(Store(str(tmp_path)))
