import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cluster import report_data
from cluster.charts import precision_recall_chart, roc_chart
from cluster.config import Config, load_config
from cluster.errors import UserError
from cluster.inspection_files import MANIFEST, inspection_folder, picture_path, read_scores
from cluster.report import REPORT, build_report, confusion, threshold_lines, write_report
from data.store import Store
from tests.inspection_fixture import FAILED, write_inspection

HOSTILE = "</script><script>alert(1)</script>'\\\"\u2028<img src=x onerror=alert(1)>"


@pytest.fixture
def out(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out"))


def _page(out: Store) -> str:
    build_report(out)
    return out.read_bytes(REPORT).decode()


def test_page_refers_to_its_data_files_alone(out: Store) -> None:
    write_inspection(out, num_images=3)
    links = re.findall(
        r'(?:src|href)="([^"]+)"', re.sub("<svg.*?</svg>", "", _page(out), flags=re.S)
    )
    assert links == ["data:,", "#failed", "report/rows-00000.js", "report/failed-00000.js"]
    assert all(out.exists(link) for link in links[2:])


def test_text_of_others_never_becomes_markup(out: Store) -> None:
    write_inspection(out, num_images=3)
    manifest = json.loads(out.read_bytes("manifest.json"))
    out.write_bytes("manifest.json", json.dumps(manifest | {"data_uri": HOSTILE}).encode())
    page = _page(out)
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert page.count("<script") == 4


@pytest.mark.parametrize(("split", "about"), [("test", "data, test"), ("", "data")])
def test_the_head_says_what_was_inspected_and_what_the_model_takes(
    out: Store, split: str, about: str
) -> None:
    """Neither tiles nor images as they came have the size of the model's input."""
    write_inspection(out, num_images=3)
    manifest = json.loads(out.read_bytes(MANIFEST)) | {"split": split, "data_uri": "data"}
    out.write_bytes(MANIFEST, json.dumps(manifest).encode())
    page = re.sub(r"\s+", " ", _page(out))
    assert f"<title>Inspection of {about}</title>" in page
    assert f"<dt>{'Data set' if split else 'Folder'}</dt><dd>{about}</dd>" in page
    side = manifest["resolution"]
    assert f"<dt>Input of the model</dt><dd>{side} × {side} px" in page


def test_confusion_counts_labels_and_decisions(out: Store) -> None:
    table = write_inspection(out, num_images=30, review_from=0.4)
    truth, decision = table["label"], table["decision"]
    counts = confusion(table)
    assert list(counts) == ["normal", "abnormal"]
    assert all(list(row) == ["normal", "review", "abnormal"] for row in counts.values())
    assert counts["normal"]["abnormal"] == 1
    assert counts["abnormal"]["review"] == 1
    for label, row in counts.items():
        for name, number in row.items():
            assert number == ((truth == label) & (decision == name)).sum()
    assert f'data-label="abnormal" data-decision="abnormal"\n          aria-label="{9}' in _page(
        out
    )


def test_without_review_there_is_no_column_for_it() -> None:
    table = pd.DataFrame({"label": ["unlabelled"] * 2, "decision": ["normal", "abnormal"]})
    assert confusion(table) == {"unlabelled": {"normal": 1, "abnormal": 1}}
    assert confusion(table.assign(decision=["normal", None])) == {}


@pytest.mark.parametrize(
    ("calibration", "lines"),
    [
        ({}, {}),
        ({"threshold": 0.5}, {"abnormal above": 0.5}),
        (
            {"rule": "a", "thresholds": {"a": {"low": 0.4, "high": 0.5}}},
            {"review from": 0.4, "abnormal from": 0.5},
        ),
        ({"rule": "a", "thresholds": {"a": {"low": 0.5, "high": 0.5}}}, {"abnormal from": 0.5}),
    ],
)
def test_thresholds_have_names(calibration: dict[str, Any], lines: dict[str, float]) -> None:
    assert threshold_lines(calibration) == lines


def test_thresholds_are_lines_of_the_histogram(out: Store) -> None:
    write_inspection(out, num_images=9, review_from=0.45)
    page = _page(out)
    assert "review from<" in page
    assert "abnormal from<" in page


def test_numbers_appear_once_they_are_evaluated(out: Store) -> None:
    write_inspection(out, num_images=9)
    assert "0.988" not in _page(out)
    metrics = {"auroc": 0.98765, "f1": 0.0, "recall": None, "auroc_by_kind": {"pit": 0.8764}}
    out.write_bytes("metrics.json", json.dumps(metrics).encode())
    page = _page(out)
    assert "<b>0.988</b> <span>AUROC" in page
    assert ">F1<" in page
    assert ">recall<" not in page
    assert "0.876" in page
    assert "intervals" not in page
    out.write_bytes(
        "metrics.json", json.dumps(metrics | {"intervals": {"auroc": [0.9511, 0.9909]}}).encode()
    )
    page = _page(out)
    assert "<b>0.988</b> <i>0.951–0.991</i> <span>AUROC" in page
    assert "95 % intervals" in page


def test_kinds_are_listed_with_what_was_missed(out: Store) -> None:
    write_inspection(out, num_images=9)
    cells = re.findall(r"<tr><th scope=\"row\">(\w+)</th><td class=\"number\">(\d+)", _page(out))
    assert cells == [("pit", "1"), ("scratch", "1"), ("stain", "1")]


@pytest.mark.parametrize("labelled", [True, False])
def test_uncalibrated_inspection_says_so(out: Store, labelled: bool) -> None:
    write_inspection(out, num_images=6, labelled=labelled, calibrated=False)
    page = _page(out)
    assert "No decisions" in page
    assert 'id="confusion"' not in page
    assert 'value="p_value"' not in page
    assert ("ROC curve" in page) is labelled
    assert ("Precision over recall" in page) is labelled


def test_inspection_where_everything_failed_still_gets_a_report(out: Store) -> None:
    write_inspection(out, num_images=3)
    unit = out.list("scores/")[0]
    empty = pd.read_parquet(out.local_path(unit)).iloc[:0]
    empty.to_parquet(out.local_path(unit), index=False)
    page = _page(out)
    assert out.list("report/") == ["report/failed-00000.js"]
    assert f'<b class="bad">{len(FAILED)}</b>' in page
    assert 'id="gallery"' not in page
    assert "<svg" not in page


@pytest.mark.parametrize("label", ["normal", "abnormal"])
@pytest.mark.parametrize("chart", [roc_chart, precision_recall_chart])
def test_no_curve_of_one_label(chart: Any, label: str) -> None:
    table = pd.DataFrame({"label": [label] * 3, "score": [0.1, 0.2, 0.3], "decision": [None] * 3})
    assert chart(table) is None


def test_curves_stay_small_whatever_the_number_of_images() -> None:
    rng = np.random.default_rng(0)
    abnormal = rng.random(100_000) < 0.3
    label = np.where(abnormal, "abnormal", "normal")
    table = pd.DataFrame({"label": label, "score": rng.normal(abnormal * 1.0), "decision": None})
    for chart in (roc_chart, precision_recall_chart):
        assert len(chart(table) or "") < 100_000


def test_command_writes_the_page_and_says_where(
    out: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(None, {"inspect.dir": out.uri})
    with pytest.raises(UserError, match="not a finished inspection"):
        write_report(config)
    write_inspection(out, num_images=3)
    assert write_report(config) == 0
    assert out.read_bytes(REPORT).decode() == _page(out)
    assert out.url(REPORT) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "test"),
        ({"inspect.split": "validation"}, "validation"),
        ({"inspect.source": "s3://line/today"}, "images"),
        ({"inspect.dir": "s3://line/scores/day 1+2/"}, "day 1-2"),
    ],
)
def test_an_inspection_has_the_name_of_its_folder(settings: dict[str, str], name: str) -> None:
    assert inspection_folder(load_config(None, settings)) == name


def test_pictures_that_were_deleted_stop_no_report(
    out: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_inspection(out, num_images=9)
    kept, lost = out.list("maps/")[0], out.list("maps/")[1:]
    for path in lost:
        out.delete(path)
    sent: list[str] = []
    monkeypatch.setattr("cluster.report.log_results", lambda *job: sent.extend(job[2]))
    write_report(load_config(None, {"inspect.dir": out.uri}))
    assert [name for name in sent if "/maps/" in name] == [f"inspection/out/{kept}"]


def test_the_place_of_a_report_is_told_before_mlflow_is_asked(
    out: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_inspection(out, num_images=3)
    told: list[str] = []
    monkeypatch.setattr(
        "cluster.report.log_results", lambda *_: told.append(capsys.readouterr().out)
    )
    write_report(load_config(None, {"inspect.dir": out.uri}))
    assert told == [f"report: {out.url(REPORT)}\n"]


def test_what_goes_to_mlflow_is_bounded(out: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    write_inspection(out, num_images=25, num_pictured=20)
    sent: dict[str, bytes] = {}

    def log(config: Config, metrics: object, files: dict[str, bytes]) -> None:
        sent.update(files.items())

    monkeypatch.setattr("cluster.report.log_results", log)
    monkeypatch.setattr(report_data, "MAX_PICTURED", 10)
    write_report(load_config(None, {"inspect.dir": out.uri}))
    prefix = "inspection/out/"
    assert {f"{prefix}{path}" for path in out.list("report/")} <= set(sent)
    assert sent[f"{prefix}{REPORT}"] == out.read_bytes(REPORT)
    table = read_scores(out)
    best = report_data.choose(table.assign(outcome=report_data.outcomes(table)), 10)
    pictured = best[best["pictures"]]
    assert 0 < len(pictured) < 10
    pictures = {
        prefix + picture_path(unit, key, what)
        for unit, key in zip(pictured["unit"], pictured["key"], strict=True)
        for what in ("image", "reconstruction", "overlay", "map")
    }
    assert {name for name in sent if "/maps/" in name} == pictures
