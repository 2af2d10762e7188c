"""The README's first command, with fewer images."""

import json
import re
from pathlib import Path

import pytest

from cluster.demo import BASELINE, METHOD
from tests.jobs import ROOT, flags, run_cli

SHORT = {
    "networks.fmap_base": 32,
    "networks.fmap_max": 16,
    "schedule.fade_kimg": 0.032,
    "schedule.steady_kimg": 0.032,
    "schedule.final_kimg": 0.32,
    "cluster.checkpoint_kimg": 0.5,
    "tracking.log_kimg": 0.1,
    "search.steps": 1,
    "search.candidates": 16,
}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_demo_leaves_a_table_a_report_and_a_comparison(tmp_path: Path) -> None:
    words = ["demo", "--config", str(ROOT / "cluster/demo.yaml"), "--run.dir", str(tmp_path)]
    status, output = run_cli([*words, *flags(SHORT)])
    assert status == 0, output
    summary = json.loads((tmp_path / "summary.json").read_text())
    for name in (METHOD, BASELINE):
        auroc = summary[name]["auroc"]
        assert 0 < auroc < 1
        assert re.search(rf"{name} .*{auroc:.3f}", output), output
        assert (tmp_path / name / "model/model.json").exists()
    report = re.search(r"^report:  (.*)$", output, re.MULTILINE)
    assert report
    assert "<html" in Path(report[1]).read_text()
    assert "mlflow ui --backend-store-uri" in output
    assert "#/compare-runs?" in output
