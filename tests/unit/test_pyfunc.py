"""The model as MLflow asks it: every row has an answer, and every answer is JSON."""

import base64
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from mlflow.pyfunc.scoring_server import predictions_to_json

from cluster.pyfunc import Blemish
from tests.tiny_model import calibrated_model, image_file, model_config


@pytest.fixture
def model(tmp_path: Path) -> Blemish:
    calibrated_model(model_config(str(tmp_path)))
    loaded = Blemish()
    loaded.load_context(SimpleNamespace(artifacts={"model": str(tmp_path / "model")}))
    return loaded


def _strict(text: str) -> Any:
    """The value of a JSON text as a browser reads it, to which NaN is none."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_bad_rows_cost_no_good_one_its_answer(model: Blemish) -> None:
    good = image_file(0)
    images = [good, None, float("nan"), "not base64!", b"GIF89a", b"", base64.b64encode(good)]
    images[-1] = images[-1].decode()
    told = io.StringIO()
    predictions_to_json(model.predict(None, pd.DataFrame({"image": images})), told)
    rows = _strict(told.getvalue())["predictions"]
    assert rows[0] == rows[-1]
    assert rows[0]["error"] == ""
    assert rows[0]["score"] > 0
    assert [row["error"].split(";")[0] for row in rows[1:-1]] == [
        "there is no image",
        "there is no image",
        "the text in column image is not base64",
        "not a PNG, JPEG, TIFF, BMP or WebP file",
        "there is no image",
    ]
    for row in rows[1:-1]:
        assert {row[name] for name in ("score", "p_value", "decision", "regions")} == {None}
