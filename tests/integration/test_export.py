"""The exported model, loaded by an MLflow that knows nothing of this repository."""

import ast
import base64
import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.utils import canonicalize_name

from cluster.examiner import Examiner, Picture, Verdict
from cluster.export import PACKAGES, REQUIREMENTS
from cluster.model_store import load_card, load_model
from data.store import Store
from tests.jobs import ROOT, end_group, flags, run_cli
from tests.ports import free_port
from tests.tiny_model import SETTINGS, calibrated_model, image_file, model_config

NUM_IMAGES = 3
_LOAD = """
import base64, json, sys
import mlflow.pyfunc, pandas as pd
model = mlflow.pyfunc.load_model(sys.argv[1])
rows = json.load(sys.stdin)
images = [base64.b64decode(row["image"]) for row in rows]
table = pd.DataFrame({"image": images, "key": [row["key"] for row in rows]})
answer = model.predict(table).to_dict("records")
files = [getattr(module, "__file__", None) for module in sys.modules.values()]
print(json.dumps([answer, [file for file in files if file]]))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Verdict]]:
    """An exported model, and what the model it was made of says about some images."""
    folder = tmp_path_factory.mktemp("export")
    run_dir = str(folder / "run")
    calibrated_model(model_config(run_dir), "tiles")
    # Decided by another rule than the run's own calibration.
    words = flags(SETTINGS | {"run.dir": run_dir, "inspect.false_positive_rate": 0.2})
    status, output = run_cli(["export", str(folder / "model"), *words])
    assert status == 0, output
    assert "at most 0.2 of normal images" in output
    card = load_card(Store(str(folder / "model/artifacts")))
    assert card.calibration
    assert card.calibration.false_positive_rate == 0.2
    examiner = Examiner(load_model(Store(run_dir)), card.calibration)
    answers = examiner.examine([Picture(image_file(n), f"part-{n}") for n in range(NUM_IMAGES)])
    return folder / "model", [answer for answer in answers if isinstance(answer, Verdict)]


def _rows() -> list[dict[str, str]]:
    """Rows as JSON carries them; the last one holds no image."""
    files = [(f"part-{n}", image_file(n)) for n in range(NUM_IMAGES)] + [("bad", b"GIF89a")]
    return [{"image": base64.b64encode(payload).decode(), "key": key} for key, payload in files]


def _assert_right(answer: list[dict[str, Any]], expected: list[Verdict]) -> None:
    assert len(answer) == len(expected) + 1 == NUM_IMAGES + 1
    for row, verdict in zip(answer, expected, strict=False):
        assert (row["score"], row["p_value"]) == (verdict.score, verdict.p_value)
        assert row["decision"] == verdict.decision
        regions = [region.model_dump() for region in verdict.regions]
        assert json.loads(row["regions"]) == regions
        assert row["error"] == ""
    assert answer[-1]["error"] == "not a PNG, JPEG, TIFF, BMP or WebP file; convert it"


def _outside() -> dict[str, str]:
    """An environment that does not lead to this repository."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "RAY_ADDRESS")}


def test_it_gives_the_same_scores_from_its_own_code(
    exported: tuple[Path, list[Verdict]], tmp_path: Path
) -> None:
    folder, expected = exported
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, str(folder)],
        cwd=tmp_path,
        env=_outside(),
        input=json.dumps(_rows()),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    answer, files = json.loads(done.stdout.splitlines()[-1])
    _assert_right(answer, expected)
    assert not [file for file in files if Path(file).is_relative_to(ROOT / "cluster")]
    assert not list(folder.rglob("*.pkl"))
    ours = [Path(file) for file in files if Path(file).is_relative_to(folder)]
    assert {path.name for path in ours} >= {"pyfunc.py", "engine.py", "search.py", "formats.py"}
    assert _distributions(ours) == {*REQUIREMENTS}
    pinned = (folder / "requirements.txt").read_text().split()
    assert {line.partition("==")[0] for line in pinned} == {*REQUIREMENTS}


def _distributions(files: list[Path]) -> set[str]:
    """Packages that some files import as they are loaded."""
    modules = set()
    for path in files:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules.add(node.module.split(".")[0])
    modules -= set(sys.stdlib_module_names) | set(PACKAGES)
    names = packages_distributions()
    # MLflow's own module is in three of them.
    return {"mlflow" if n == "mlflow" else canonicalize_name(names[n][0]) for n in modules}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_mlflow_serves_it(exported: tuple[Path, list[Verdict]], tmp_path: Path) -> None:
    folder, expected = exported
    port = free_port()
    words = ["models", "serve", "--env-manager", "local", "-h", "127.0.0.1", "-p", str(port)]
    log = (tmp_path / "log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *words, "-m", str(folder)],
        cwd=tmp_path,
        env=_outside() | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    try:
        _wait_until_up(port, process)
        body = json.dumps({"dataframe_records": _rows()}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            _assert_right(json.load(answer)["predictions"], expected)
    finally:
        end_group(process)
        log.close()


def _wait_until_up(port: int, process: subprocess.Popen[bytes], timeout_s: float = 240) -> None:
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s and process.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=2).close()
            return
        time.sleep(0.2)
    raise AssertionError("mlflow models serve did not come up")


def test_it_is_not_written_over_files_of_others(tmp_path: Path) -> None:
    run_dir = str(tmp_path / "run")
    calibrated_model(model_config(run_dir))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/notes.txt").touch()
    status, output = run_cli(
        ["export", str(tmp_path / "taken"), *flags(SETTINGS | {"run.dir": run_dir})]
    )
    assert status == 2
    assert "holds files already" in output
