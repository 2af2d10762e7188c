import re
from pathlib import Path

import pandas as pd
import pytest

from cluster import report
from cluster.charts import roc_chart
from cluster.config import load_config
from cluster.errors import UserError
from cluster.report import REPORT, choose, outcomes, render, write_report
from data.store import Store
from tests.inspection_fixture import write_inspection


@pytest.fixture
def out(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out"))


def test_outcome_needs_both_label_and_decision() -> None:
    rows = {
        ("abnormal", "normal"): "missed",
        ("normal", "abnormal"): "false alarm",
        ("abnormal", "abnormal"): "",
        ("normal", "normal"): "",
        ("unlabelled", "abnormal"): "",
        ("abnormal", None): "",
    }
    table = pd.DataFrame(list(rows), columns=["label", "decision"])
    assert list(outcomes(table)) == list(rows.values())


def test_gallery_keeps_places_for_missed_anomalies() -> None:
    scores = [float(i) for i in range(20)]
    table = pd.DataFrame({"score": scores, "outcome": ["missed"] * 5 + [""] * 15})
    shown = choose(table, 6)
    assert list(shown["score"]) == [19, 18, 17, 4, 3, 2]
    assert len(choose(table, 100)) == 20


def test_every_linked_picture_exists(out: Store) -> None:
    write_inspection(out, num_images=25)
    page = render(out)
    links = set(re.findall(r'(?:src|href)="(maps/[^"]+)"', page))
    assert len(links) == 25 * 4
    assert all(out.exists(link) for link in links)


def test_page_refers_to_nothing_outside_its_folder(out: Store) -> None:
    write_inspection(out, num_images=3)
    links = re.findall(r'(?:src|href)="([^"]+)"', render(out))
    assert {link.split("/")[0] for link in links if link[0] != "#"} == {"maps", "data:,"}


def test_text_of_others_is_escaped(out: Store) -> None:
    write_inspection(out, num_images=3)
    page = render(out)
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_rest_of_a_large_inspection_is_counted(out: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    write_inspection(out, num_images=25)
    monkeypatch.setattr(report, "MAX_IMAGES", 10)
    page = render(out)
    assert page.count("<article") == 10
    assert "15 more are in" in page


def test_numbers_appear_once_they_are_evaluated(out: Store) -> None:
    write_inspection(out, num_images=3)
    assert "0.987" not in render(out)
    out.write_bytes(
        "metrics.json", b'{"auroc": 0.98765, "f1": 0.0, "recall": null, "auroc_by_kind": {}}'
    )
    page = render(out)
    assert "0.988" in page
    assert ">F1<" in page
    assert ">recall<" not in page


@pytest.mark.parametrize("labelled", [True, False])
def test_uncalibrated_inspection_has_no_filters(out: Store, labelled: bool) -> None:
    write_inspection(out, num_images=6, labelled=labelled, calibrated=False)
    page = render(out)
    assert "<button" not in page
    assert "No decisions" in page
    assert ("ROC curve" in page) is labelled


def test_inspection_where_everything_failed_still_gets_a_report(out: Store) -> None:
    write_inspection(out, num_images=3)
    unit = out.list("scores/")[0]
    empty = pd.read_parquet(out.local_path(unit)).iloc[:0]
    empty.to_parquet(out.local_path(unit), index=False)
    page = render(out)
    assert "cannot identify image file" in page
    assert "<article" not in page
    assert "<svg" not in page


@pytest.mark.parametrize("label", ["normal", "abnormal"])
def test_no_roc_curve_of_one_label(label: str) -> None:
    table = pd.DataFrame({"label": [label] * 3, "score": [0.1, 0.2, 0.3], "decision": [None] * 3})
    assert roc_chart(table) is None


def test_command_writes_the_page_and_says_where(
    out: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(None, {"inspect.dir": out.uri})
    with pytest.raises(UserError, match="not a finished inspection"):
        write_report(config)
    write_inspection(out, num_images=3)
    assert write_report(config) == 0
    assert out.read_bytes(REPORT).decode() == render(out)
    assert out.url(REPORT) in capsys.readouterr().out
