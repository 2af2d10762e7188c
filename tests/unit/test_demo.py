"""The two runs of the demo differ in their weights and in nothing else that counts."""

from pathlib import Path

import pytest

from cluster.config import load_config
from cluster.demo import BASELINE, METHOD, demo_runs
from tests.jobs import ROOT


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (0.7, 1.0)),
        ({"objective.gamma": 0.3}, (0.3, 1.0)),
        ({"objective.gamma": 0.3, "objective.alpha": 0.5}, (0.3, 0.5)),
    ],
)
def test_weights_given_go_before_the_rule(
    tmp_path: Path, given: dict[str, float], expected: tuple[float, float]
) -> None:
    config = load_config(str(ROOT / "cluster/demo.yaml"), {"run.dir": str(tmp_path)} | given)
    runs = demo_runs(config)
    method, baseline = runs[METHOD].objective, runs[BASELINE].objective
    assert (method.gamma, method.alpha) == pytest.approx(expected)
    assert (baseline.gamma, baseline.alpha) == (1.0, 0.0)
    assert method.r1_weight == baseline.r1_weight == config.objective.r1_weight
