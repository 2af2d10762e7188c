"""What metrics are called and mean, in the documents and for Prometheus."""

import re
import time
from typing import Any

import pytest

from cluster import metrics
from cluster.metrics import MEANINGS, Gauges, meaning
from tests.jobs import ROOT


class FakeGauge:
    """Notes what it was told."""

    made: list["FakeGauge"] = []  # noqa: RUF012 - one list for one test

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        self.name, self.description, self.tag_keys = name, description, tag_keys
        self.told: list[tuple[float, dict[str, str]]] = []
        FakeGauge.made.append(self)

    def set(self, value: float, tags: dict[str, str]) -> None:
        self.told.append((value, tags))


def test_each_metric_has_one_gauge_with_its_name_meaning_and_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics, "Gauge", FakeGauge)
    monkeypatch.setattr(FakeGauge, "made", [])
    gauges = Gauges("s3://bucket/run")
    gauges.set({"train/images_per_s": 80.0, "ranks/wait_share_max": 0.1})
    gauges.set({"train/images_per_s": 90.0, "train/swd_16": 40.0})
    made: Any = {gauge.name: gauge for gauge in FakeGauge.made}
    assert list(made) == ["blemish_images_per_s", "blemish_wait_share_max", "blemish_swd_16"]
    assert len(FakeGauge.made) == 3
    tags = {"run": "s3://bucket/run"}
    assert made["blemish_images_per_s"].told == [(80.0, tags), (90.0, tags)]
    assert made["blemish_wait_share_max"].told == [(0.1, tags), (0.1, tags)]
    assert made["blemish_swd_16"].told == [(40.0, tags)]
    assert {gauge.tag_keys for gauge in FakeGauge.made} == {("run",)}
    assert made["blemish_images_per_s"].description == MEANINGS["train/images_per_s"]


def test_gauges_are_set_again_until_they_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "Gauge", FakeGauge)
    monkeypatch.setattr(metrics, "REPEAT_S", 0.01)
    monkeypatch.setattr(FakeGauge, "made", [])
    gauges = Gauges("run")
    gauges.set({"train/swd": 40.0})
    (gauge,) = FakeGauge.made
    deadline = time.monotonic() + 60
    while len(gauge.told) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    gauges.close()
    assert gauge.told[2] == (40.0, {"run": "run"})
    time.sleep(0.1)
    num_told = len(gauge.told)
    time.sleep(0.1)
    assert len(gauge.told) == num_told


def test_names_of_gauges_differ_where_metrics_do() -> None:
    names = [metric.partition("/")[2] for metric in MEANINGS]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-zA-Z_]\w*", name) for name in names)


def test_levels_share_their_meaning_and_strangers_have_none() -> None:
    assert meaning("train/swd_16") == meaning("train/swd_1024") == MEANINGS["train/swd_R"]
    assert meaning("train/r1") == MEANINGS["train/r1"]
    assert meaning("train/stranger") == ""


def test_the_documents_list_every_metric_with_its_meaning() -> None:
    text = (ROOT / "docs/operations.md").read_text()
    listed = dict(re.findall(r"^\| `((?:train|data|ranks)/\w+)` \| (.*) \|$", text, re.MULTILINE))
    assert listed == MEANINGS
