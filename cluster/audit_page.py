"""The page of an audit: how many training images are abnormal, what to do, and which they are."""

from collections.abc import Mapping

import pandas as pd

from cluster import __version__
from cluster.charts import score_histogram
from cluster.config import Config
from cluster.findings import Findings, advice, headline
from cluster.inspection_files import picture_path
from cluster.page import fill
from data.store import Store
from gan.contamination import COVERAGE

_PICTURES = ("image", "reconstruction", "overlay")


def render(
    config: Config,
    found: Findings,
    tables: Mapping[str, pd.DataFrame],
    *,
    mixed_in: "pd.Series[bool] | None",
    num_failed: int,
) -> str:
    """The page as HTML; pictures are linked relative to the folder of the audit.

    Args:
        config: Configuration of the run.
        found: What was found.
        tables: Scored images of `training`, most suspicious first, of `normal` (validation), and
            of `known abnormal`.
        mixed_in: Which training images were mixed in on purpose, where that is known.
        num_failed: Training images that could not be scored.
    """
    training = tables["training"]
    if mixed_in is not None:
        training = training.assign(mixed_in=mixed_in)
    shown = training.head(config.audit.num_shown)
    scores = [table[["score"]].assign(label=label) for label, table in tables.items()]
    return fill(
        "audit.html",
        data_uri=Store(config.data.uri).uri,
        run_dir=Store(config.run.dir).uri,
        objective=config.objective,
        version=__version__,
        found=found,
        coverage=COVERAGE,
        headline=headline(found),
        advice=advice(found, config.objective),
        histogram=score_histogram(pd.concat(scores, ignore_index=True), {}),
        cards=[_card(row) for row in shown.to_dict("records")],
        num_failed=num_failed,
    )


def _card(row: dict[str, object]) -> dict[str, object]:
    unit, key = str(row["unit"]), str(row["key"])
    pictures = {what: f"train-normal/{picture_path(unit, key, what)}" for what in _PICTURES}
    return row | {
        "pictures": pictures if row["pictures"] else {},
        "mixed_in": bool(row.get("mixed_in", False)),
    }
