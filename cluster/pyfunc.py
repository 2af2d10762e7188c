"""The model as an MLflow pyfunc, from code: MLflow runs this file, it never unpickles anything.

It is written by `cluster.export`, beside a copy of the packages it imports.
"""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from cluster.examiner import Examiner, Picture, Verdict
from data.errors import DataError
from data.store import Store

_BLOCK = 32
"""Images decoded at a time."""


class Blemish(PythonModel):
    """Scores image files."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the model folder among the artifacts."""
        folder = Path(context.artifacts["model"])
        self._examiner = Examiner.load(Store(str(folder.parent)), folder.name)

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Score images.

        Args:
            context: Not used.
            model_input: Column `image` with the bytes of an image file each, or those in base64;
                and maybe `key`, the key an inspection gave the image.
            params: Not used.

        Returns:
            `score`, `p_value`, `decision`, `regions` (JSON) and `error`: empty, or why an image
            could not be used, and then nothing else is known.
        """
        keys = model_input["key"] if "key" in model_input else [None] * len(model_input)
        found = [_picture(*pair) for pair in zip(model_input["image"], keys, strict=True)]
        rows: list[dict[str, Any]] = []
        for first in range(0, len(found), _BLOCK):
            rows += map(_row, self._examine(found[first : first + _BLOCK]))
        columns = ["score", "p_value", "decision", "regions", "error"]
        frame = pd.DataFrame(rows, columns=columns, dtype=object)
        # None is null in the JSON of a server; NaN, which pandas fills in, is no JSON at all.
        return frame.where(frame.notna(), None)

    def _examine(self, found: list[Picture | DataError]) -> list[Verdict | DataError]:
        pictures = [picture for picture in found if isinstance(picture, Picture)]
        answers = iter(self._examiner.examine(pictures) if pictures else [])
        return [next(answers) if isinstance(each, Picture) else each for each in found]


def _picture(image: object, key: object) -> Picture | DataError:
    """An image to examine, or why there is none."""
    try:
        payload = base64.b64decode(image, validate=True) if isinstance(image, str) else image
    except ValueError:
        return DataError("the text in column image is not base64")
    if not isinstance(payload, bytes | bytearray | memoryview) or not payload:
        return DataError("there is no image; give the bytes of an image file, or these in base64")
    payload = bytes(payload)
    given = isinstance(key, str) and key
    return Picture(payload, str(key) if given else hashlib.sha256(payload).hexdigest()[:32])


def _row(answer: Verdict | DataError) -> dict[str, Any]:
    if isinstance(answer, DataError):
        return {"error": str(answer)}
    regions = json.dumps([region.model_dump() for region in answer.regions])
    said = answer.model_dump(include={"score", "p_value", "decision"})
    return said | {"regions": regions, "error": ""}


set_model(Blemish())
