import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cluster.config import Config, load_config
from cluster.errors import UserError
from cluster.evaluate import EXPLANATIONS, METRICS, evaluate, evaluate_inspection, evaluate_run
from cluster.inspection_files import MANIFEST, write_unit
from data.dataset import DatasetIndex, save_index
from data.store import Store
from tests.inspection_fixture import FAILED, write_inspection


def _table(rows: list[tuple[str, str, float, str | None]]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["label", "kind", "score", "decision"])
    return table.assign(key=[f"k{i}" for i in range(len(table))])


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
    save_index(Store(str(folder / "data")), index)
    overrides = {"data.uri": str(folder / "data"), "inspect.dir": str(folder / "out")}
    return load_config(None, overrides)


def test_evaluate_run_writes_what_it_returns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = _config(tmp_path)
    out = Store(config.inspect.dir)
    table = write_inspection(out)
    metrics = evaluate_run(config)
    assert json.loads(out.read_bytes(METRICS)) == metrics
    assert metrics == evaluate(table, {"scratch"}, None) | {"num_failed": len(FAILED)}
    assert set(metrics) == {*EXPLANATIONS, "auroc_by_kind"}
    assert evaluate_inspection(config) == 0
    printed = capsys.readouterr().out
    assert f"{metrics['auroc']:.3f}" in printed
    assert out.url(METRICS) in printed


def _delete_manifest(out: Store) -> None:
    out.delete(MANIFEST)


def _score_an_image_again(out: Store) -> None:
    write_unit(out, "again", write_inspection(out)[:1].to_dict("records"), [])


def _delete_scores(out: Store) -> None:
    for name in out.list("scores/"):
        out.delete(name)


def _drop_labels(out: Store) -> None:
    write_inspection(out, labelled=False)


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (_delete_manifest, "not a finished inspection"),
        (_score_an_image_again, "'part-000' twice"),
        (_delete_scores, "no scores"),
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
