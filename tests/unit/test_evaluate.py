import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cluster.config import Config, load_config
from cluster.errors import UserError
from cluster.evaluate import (
    EXPLANATIONS,
    METRICS,
    evaluate,
    evaluate_inspection,
    evaluate_pixels,
    evaluate_run,
    with_interval,
)
from cluster.inspection_files import MANIFEST, SCHEMA, pixels_path, write_unit
from cluster.pixel_metrics import PixelCounts
from data.dataset import DatasetIndex, save_index
from data.store import Store
from gan.thresholds import RULES
from tests.inspection_fixture import FAILED, write_inspection


def _table(rows: list[tuple[str, str, float, str | None]]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["label", "kind", "score", "decision"])
    keys = [f"k{i}" for i in range(len(table))]
    return table.assign(key=keys, group=keys)


SMALL = [
    ("normal", "good", 0.1, "normal"),
    ("normal", "good", 0.2, "normal"),
    ("normal", "good", 0.3, "normal"),
    ("normal", "good", 0.8, "abnormal"),
    ("abnormal", "pit", 0.9, "abnormal"),
    ("abnormal", "pit", 0.8, "abnormal"),
    ("abnormal", "stain", 0.25, "normal"),
    ("unlabelled", "", 5.0, "abnormal"),
]


def test_small_table_by_hand() -> None:
    metrics = evaluate(_table(SMALL), {"pit"}, f1_threshold=0.25)
    # Pairs (abnormal, normal) won, ties half: pit 4 + 3.5 of 8, stain 2 of 4.
    assert metrics["auroc"] == pytest.approx(9.5 / 12)
    assert metrics["auroc_seen"] == pytest.approx(7.5 / 8)
    assert metrics["auroc_unseen"] == pytest.approx(2 / 4)
    assert metrics["auroc_by_kind"] == {"pit": pytest.approx(7.5 / 8), "stain": 0.5}
    # Thresholds downwards: precision 1, 2/3, 2/4, 3/5 where recall rises to 1/3, 2/3, 2/3, 1.
    assert metrics["average_precision"] == pytest.approx(1 / 3 * (1 + 2 / 3 + 3 / 5))
    assert metrics["best_f1"] == pytest.approx(2 * 3 / (5 + 3))
    assert metrics["precision"] == pytest.approx(2 / 3)
    assert metrics["recall"] == pytest.approx(2 / 3)
    assert metrics["false_positive_rate"] == pytest.approx(1 / 4)
    assert metrics["f1"] == pytest.approx(2 * 2 / (3 + 3))
    assert metrics["escape_rate"] == pytest.approx(1 / 3)
    assert metrics["review_rate"] == 0
    # Only from 0.25 on are 95 % of three anomalies flagged, and 0.3 and 0.8 with them.
    assert metrics["fpr_at_95_recall"] == pytest.approx(2 / 4)
    assert (metrics["num_normal"], metrics["num_abnormal"]) == (4, 3)


def test_ranking_agrees_with_slow_reference() -> None:
    rng = np.random.default_rng(3)
    abnormal = rng.random(120) < 0.4
    # One decimal gives many ties.
    scores = np.round(rng.normal(abnormal * 0.8, 1.0), 1)
    labels = np.where(abnormal, "abnormal", "normal")
    table = _table([(label, "x", score, None) for label, score in zip(labels, scores, strict=True)])
    metrics = evaluate(table, (), f1_threshold=0.5)
    wins = (scores[abnormal][:, None] > scores[~abnormal]).mean()
    ties = (scores[abnormal][:, None] == scores[~abnormal]).mean()
    assert metrics["auroc"] == pytest.approx(wins + ties / 2)
    flagged = scores >= 0.5
    precision = abnormal[flagged].mean()
    recall = flagged[abnormal].mean()
    assert metrics["best_f1"] == pytest.approx(2 / (1 / precision + 1 / recall))


def test_none_where_nothing_can_be_said() -> None:
    table = _table(SMALL)
    assert evaluate(table, {"pit", "stain"}, None)["auroc_unseen"] is None
    assert evaluate(table, (), None)["auroc_seen"] is None
    undecided = evaluate(table.assign(decision=None), (), None)
    assert {undecided[name] for name in ("f1", "precision", "recall", "false_positive_rate")} == {
        None
    }
    silent = evaluate(table.assign(decision="normal"), (), None)
    assert (silent["precision"], silent["recall"], silent["f1"]) == (None, 0.0, 0.0)


def test_review_is_neither_an_alarm_nor_an_escape() -> None:
    decisions = ["normal", "review", "normal", "abnormal", "abnormal", "review", "normal", None]
    metrics = evaluate(_table(SMALL).assign(decision=decisions), (), None)
    assert metrics["recall"] == pytest.approx(1 / 3)
    assert metrics["escape_rate"] == pytest.approx(1 / 3)
    assert metrics["false_positive_rate"] == pytest.approx(1 / 4)
    assert metrics["review_rate"] == pytest.approx(2 / 7)


def test_parts_are_drawn_whole() -> None:
    """A part's five pictures are one piece of evidence: fewer pieces, wider intervals."""
    rng = np.random.default_rng(0)
    labels = np.repeat(["normal", "abnormal"], 50)
    scores = np.repeat(rng.normal(size=20), 5) + (labels == "abnormal")
    table = _table([(label, "x", score, None) for label, score in zip(labels, scores, strict=True)])
    apart = evaluate(table, (), None)["intervals"]["auroc"]
    together = evaluate(table.assign(group=np.arange(100) // 5), (), None)["intervals"]["auroc"]
    assert together[1] - together[0] > 1.5 * (apart[1] - apart[0])


def test_units_of_pixels_add_up_and_only_finished_ones_count(tmp_path: Path) -> None:
    config = _config(tmp_path)
    out = Store(config.inspect.dir)
    write_inspection(out)
    rng, whole = np.random.default_rng(0), PixelCounts(num_without_mask=4)
    for number, unit in enumerate(("test-32-00000", "test-32-00001", "unfinished")):
        counts = PixelCounts(num_without_mask=2)
        for i in range(10):
            level, mask = rng.random((8, 8)), np.zeros((8, 8), bool)
            mask[2:4, 2:5] = i % 2
            for each in (counts, whole) if number < 2 else (counts,):
                each.add(level + 0.5 * mask, mask, f"part-{number}-{i}")
        out.write_bytes(pixels_path(unit), counts.to_bytes())
    metrics = evaluate_run(config)
    expected = evaluate_pixels(whole)
    assert metrics["intervals"].items() >= expected.pop("intervals").items()
    assert metrics.items() >= expected.items()
    assert (metrics["num_pixel_images"], metrics["num_without_mask"]) == (20, 4)
    assert 0.5 < metrics["aupro"] < metrics["pixel_auroc"] < 1


def test_the_operations_page_explains_every_number_rule_and_column() -> None:
    text = (Path(__file__).parents[2] / "docs/operations.md").read_text(encoding="utf-8")
    names = {*EXPLANATIONS, *RULES, *SCHEMA.names}
    assert {name for name in names if f"`{name}`" not in text} == set()


def test_number_is_shown_with_its_interval() -> None:
    assert with_interval(0.91249, [0.8871, 0.9344]) == "0.912 (0.887–0.934)"
    assert with_interval(0.5, None) == "0.500"
    assert with_interval(3, None) == "3"
    assert with_interval(None, None) == "-"


@pytest.mark.parametrize("missing", ["normal", "abnormal"])
def test_one_class_is_an_error_that_counts_labels(missing: str) -> None:
    table = _table(SMALL)
    with pytest.raises(UserError, match=f"{missing}=0.*unlabelled=1"):
        evaluate(table[table["label"] != missing], (), None)


def _config(folder: Path) -> Config:
    index = DatasetIndex(
        name="parts",
        channels=1,
        resolution=32,
        resolutions=(32,),
        shards=(),
        labels={},
        kinds={"train-abnormal": {"scratch": 4}},
        seed=0,
    )
    save_index(Store(str(folder / "run")), index)
    # The data set of the images inspected is another one, or was packed anew.
    save_index(Store(str(folder / "data")), index.model_copy(update={"kinds": {}}))
    places = {"run.dir": "run", "data.uri": "data", "inspect.dir": "out"}
    return load_config(None, {name: str(folder / place) for name, place in places.items()})


def test_numbers_and_the_ends_of_their_intervals_go_to_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config(tmp_path)
    write_inspection(Store(config.inspect.dir))
    sent: dict[str, float] = {}
    monkeypatch.setattr("cluster.evaluate.log_results", lambda _, numbers: sent.update(numbers))
    metrics = evaluate_run(config)
    low, high = metrics["intervals"]["auroc"]
    assert sent["out/auroc"] == metrics["auroc"]
    assert (sent["out/auroc_low"], sent["out/auroc_high"]) == (low, high)
    assert low < metrics["auroc"] < high
    assert sent["out/num_failed"] == len(FAILED)


def test_evaluate_run_writes_what_it_returns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = _config(tmp_path)
    out = Store(config.inspect.dir)
    table = write_inspection(out)
    metrics = evaluate_run(config)
    assert json.loads(out.read_bytes(METRICS)) == metrics
    of_images = evaluate(table, {"scratch"}, None)
    assert metrics == {**evaluate_pixels(PixelCounts()), **of_images, "num_failed": len(FAILED)}
    assert set(metrics) == {*EXPLANATIONS, "intervals", "auroc_by_kind"}
    low, high = metrics["intervals"]["auroc"]
    assert low < metrics["auroc"] < high
    assert evaluate_inspection(config) == 0
    printed = capsys.readouterr().out
    assert f"{metrics['auroc']:.3f} ({low:.3f}–{high:.3f})" in printed
    assert out.url(METRICS) in printed


def _delete_manifest(out: Store) -> None:
    out.delete(MANIFEST)


def _score_an_image_again(out: Store) -> None:
    write_unit(out, "again", write_inspection(out)[:1].to_dict("records"), [])


def _delete_scores(out: Store) -> None:
    for name in out.list("scores/"):
        out.delete(name)


def _damage_pixels(out: Store) -> None:
    out.write_bytes(pixels_path("test-32-00000"), b"PK")


def _drop_labels(out: Store) -> None:
    write_inspection(out, labelled=False)


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (_delete_manifest, "not a finished inspection"),
        (_score_an_image_again, "'part-000' twice"),
        (_delete_scores, "no scores"),
        (_damage_pixels, r"pixels/test-32-00000\.npz is damaged .*; inspect again"),
        (_drop_labels, "out: labels are normal=0, abnormal=0, unlabelled=40"),
    ],
)
def test_bad_inspection_gives_one_clear_message(tmp_path: Path, damage: Any, text: str) -> None:
    config = _config(tmp_path)
    out = Store(config.inspect.dir)
    write_inspection(out)
    damage(out)
    with pytest.raises(UserError, match=text):
        evaluate_run(config)
    assert not out.exists(METRICS)
