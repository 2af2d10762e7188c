"""The data files of the report: nothing lost, nothing that could become code."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cluster import report_data
from cluster.inspection_files import read_scores, write_unit
from cluster.report_data import choose, outcomes, rechunk, row_columns, script, write_data
from data.store import Store
from tests.inspection_fixture import FAILED, write_inspection

HOSTILE = "'); alert(1); ('\\' </script> \u2028 \n \u00e4 \U0001f600"


@pytest.fixture
def out(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out"))


def _argument(content: bytes, function: str) -> Any:
    """What a data file hands over, read as a browser does: a string literal, then JSON."""
    start, end = f"inspection.{function}(JSON.parse('", "'));\n"
    text = content.decode("ascii")
    assert text.startswith(start)
    assert text.endswith(end)
    literal = text.removeprefix(start).removesuffix(end)
    plain, rest = "", iter(literal)
    for character in rest:
        assert character not in "'\n", "the literal would end here"
        plain += next(rest) if character == "\\" else character
    return json.loads(plain)


def _decoded(column: dict[str, Any]) -> list[Any]:
    return [column["values"][code] for code in column["codes"]]


def test_outcome_needs_both_label_and_decision() -> None:
    rows = {
        ("abnormal", "normal"): "missed",
        ("normal", "abnormal"): "false alarm",
        ("abnormal", "abnormal"): "",
        ("normal", "normal"): "",
        ("abnormal", "review"): "",
        ("normal", "review"): "",
        ("unlabelled", "abnormal"): "",
        ("abnormal", None): "",
    }
    table = pd.DataFrame(list(rows), columns=["label", "decision"])
    assert list(outcomes(table)) == list(rows.values())


def test_half_of_the_places_are_kept_for_missed_anomalies() -> None:
    scores = [float(i) for i in range(20)]
    table = pd.DataFrame({"score": scores, "outcome": ["missed"] * 5 + [""] * 15})
    assert list(choose(table, 6)["score"]) == [19, 18, 17, 4, 3, 2]
    assert len(choose(table, 100)) == 20


@pytest.mark.parametrize("seed", range(5))
def test_choosing_piece_by_piece_is_choosing_at_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    outcome = rng.choice(["missed", "", "false alarm"], 300, p=[0.1, 0.8, 0.1])
    table = pd.DataFrame({"score": rng.permutation(300) / 300, "outcome": outcome})
    chosen = table.iloc[:0]
    for start in range(0, 300, 7):
        chosen = choose(pd.concat([chosen, table[start : start + 7]], ignore_index=True), 40)
    assert list(chosen["score"]) == list(choose(table, 40)["score"])


@pytest.mark.parametrize("sizes", [[], [0, 0], [3, 0, 4], [10], [25], [1] * 23, [9, 1, 30]])
def test_rechunking_keeps_every_row_in_order(sizes: list[int]) -> None:
    numbers = iter(range(1000))
    tables = [pd.DataFrame({"n": [next(numbers) for _ in range(size)]}) for size in sizes]
    chunks = list(rechunk(tables, 10))
    assert [n for chunk in chunks for n in chunk["n"]] == list(range(sum(sizes)))
    assert all(len(chunk) == 10 for chunk in chunks[:-1])
    assert all(0 < len(chunk) <= 10 for chunk in chunks)


def test_every_image_and_failed_input_is_in_the_files(
    out: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = write_inspection(out, num_images=45, review_from=0.4)
    monkeypatch.setattr(report_data, "ROWS_PER_FILE", 20)
    data = write_data(out)
    assert len(data.row_files) == 3
    files = [_argument(out.read_bytes(path), "addRows") for path in data.row_files]
    for name in ("key", "source"):
        assert [value for file in files for value in file[name]] == list(table[name])
    for name in ("label", "kind", "decision", "width"):
        assert [value for file in files for value in _decoded(file[name])] == list(table[name])
    scores = [value for file in files for value in file["score"]]
    assert scores == pytest.approx(list(table["score"]), rel=1e-5)
    (path,) = data.failed_files
    failed = _argument(out.read_bytes(path), "addFailed")
    assert failed["source"] == [row["source"] for row in FAILED]
    assert _decoded(failed["reason"]) == [row["reason"] for row in FAILED]
    assert data.num_failed == len(FAILED)
    assert len(data.images) == 45


def test_files_of_an_earlier_report_go(out: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    write_inspection(out, num_images=25)
    monkeypatch.setattr(report_data, "ROWS_PER_FILE", 10)
    assert len(write_data(out).row_files) == 3
    monkeypatch.setattr(report_data, "ROWS_PER_FILE", 25)
    data = write_data(out)
    assert out.list("report/") == sorted([*data.row_files, *data.failed_files])


def test_text_of_others_stays_inside_its_string(out: Store) -> None:
    assert _argument(script("addRows", {"key": [HOSTILE]}), "addRows") == {"key": [HOSTILE]}


def test_names_with_half_a_character_are_kept(out: Store) -> None:
    write_inspection(out, num_images=3, failed=[{"key": "a", "source": "x\udcff", "reason": "r"}])
    (path,) = write_data(out).failed_files
    assert _argument(out.read_bytes(path), "addFailed")["source"] == ["x\udcff"]


def test_regions_are_bounded_and_counted(out: Store) -> None:
    rows = write_inspection(out, num_images=2).to_dict("records")
    box = {"x": 1, "y": 2, "width": 3, "height": 4, "area": 5, "peak": 0.51234}
    rows[0]["regions"] = [box] * 70 + [box | {"area": 99}]
    rows[1]["regions"] = []
    write_unit(out, "test-32-00000", rows, [])
    columns = row_columns(read_scores(out).assign(outcome=""))
    assert columns["num_regions"] == [71, 0]
    assert columns["largest_area"] == [99, 0]
    assert columns["regions"] == [[1, 2, 3, 4, 5, 0.512] * report_data.MAX_BOXES, []]


def test_unknown_numbers_are_null(out: Store) -> None:
    write_inspection(out, num_images=3, calibrated=False)
    columns = row_columns(read_scores(out).assign(outcome=""))
    assert columns["p_value"] == [None] * 3
    assert _decoded(columns["decision"]) == [None] * 3
    nothing = read_scores(out).assign(outcome="", score=[np.nan, np.inf, 0.123456789])
    assert row_columns(nothing)["score"] == [None, None, 0.123457]
