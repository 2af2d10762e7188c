"""The command `audit`: how many of the training images called normal are not, and which.

The finished model scores the images it was trained on, shard by shard as in any inspection
(`cluster.inspection`), so a stopped audit is continued by running it again.
"""

import contextlib
import json
import re

import pandas as pd

from cluster.audit_page import render
from cluster.calibration import calibration_for, terms_of
from cluster.config import Config
from cluster.errors import UserError
from cluster.findings import Findings, advice, find, headline
from cluster.inspection import inspect_split
from cluster.inspection_files import (
    MANIFEST,
    StoredFiles,
    inspection_store,
    read_failed,
    read_scores,
)
from cluster.model_store import Calibration
from cluster.ray_session import ray_session
from cluster.suspects import hidden_truth, rank_suspects, to_csv
from cluster.tracking import log_results
from data.dataset import DatasetIndex, load_index
from data.sample import Split
from data.store import Store
from gan.fusion import Fusion

SUSPECTS = "suspects.csv"
PAGE = "audit.html"
SUMMARY = "audit.json"

_SPLITS: tuple[Split, ...] = ("validation", "train-normal", "train-abnormal")


def audit(config: Config) -> int:
    """Audit the training images of a run; the command `audit`.

    Raises:
        UserError: If the model is not calibrated, or too few images could be scored.
    """
    index, calibration = load_index(Store(config.data.uri)), calibration_for(config)
    scored = score_splits(config, index, calibration)
    tables = {split: with_evidence(table, calibration.fusion) for split, table in scored.items()}
    validation, out = tables["validation"], audit_store(config)
    normal = validation[validation["label"] == "normal"]
    suspects = rank_suspects(tables["train-normal"], normal["score"])
    known = pd.concat([tables["train-abnormal"], validation[validation["label"] == "abnormal"]])
    mixed_in = hidden_truth(index, suspects, validation)
    try:
        found = find(suspects, normal, known, mixed_in, seed=config.run.seed)
    except ValueError as error:
        raise UserError(f"cannot audit {config.data.uri}: {error}") from None
    num_failed = len(read_failed(out.child("train-normal")))
    scores = {"training": suspects, "normal": normal, "known abnormal": known}
    page = render(config, found, scores, mixed_in=mixed_in, num_failed=num_failed)
    _write(out, found, suspects, page)
    print(f"{headline(found)}\n{advice(found, config.objective)}")
    if found.truth:
        print(
            f"precision at c of the ranking: {found.truth.precision:.3f} "
            f"({found.truth.contamination:.1%} were mixed in on purpose)"
        )
    print(f"suspects: {out.url(SUSPECTS)}\naudit: {out.url(PAGE)}")
    _log(config, out, found, page)
    return 0


def audit_store(config: Config) -> Store:
    """Where an audit writes."""
    return Store(config.run.dir).child("audit")


def with_evidence(table: pd.DataFrame, fusion: Fusion | None) -> pd.DataFrame:
    """Scored images with their `evidence`: the score without D's logits.

    Those of training images, called real or fake in training, are not those of new ones.
    """
    if fusion is None:
        return table.assign(evidence=table["score"])
    return table.assign(evidence=fusion.without_logits().image_scores(terms_of(table)))


def score_splits(
    config: Config, index: DatasetIndex, calibration: Calibration
) -> dict[Split, pd.DataFrame]:
    """Score validation and both training splits, as far as that is not done yet.

    Validation images are scored for the audit, too: those of the calibration may be gone, or of
    another data set, or whole images where the training set has tiles, which count by themselves.

    Returns:
        Scores by split; a split without images has no rows.

    Raises:
        UserError: If there are no validation images.
    """
    jobs = {split: _job(config, split) for split in _SPLITS}
    wanted = [split for split in _SPLITS if index.shards_of(split)]
    if "validation" not in wanted:
        raise UserError(
            f"{config.data.uri} has no validation images, with whose scores an audit compares; "
            "pack them with the training images"
        )
    tables: dict[Split, pd.DataFrame] = {}
    with contextlib.ExitStack() as stack:
        if not all(inspection_store(jobs[split]).exists(MANIFEST) for split in wanted):
            # One cluster for all splits; each would else start its own.
            cluster = config.cluster
            stack.enter_context(ray_session(cluster.num_actors * cluster.cpus_per_worker))
        for split in wanted:
            inspect_split(jobs[split], calibration, tiles_apart=index.mode == "tiles")
            tables[split] = read_scores(inspection_store(jobs[split]))
    empty = tables["validation"].head(0)
    return {split: tables.get(split, empty) for split in _SPLITS}


def _job(config: Config, split: Split) -> Config:
    """The whole split, scored in a folder of the audit."""
    place = audit_store(config).url(split)
    whole = {"split": split, "dir": place, "source": "", "limit": 0}
    chosen = config.inspect.model_copy(update=whole)
    return config.model_copy(update={"inspect": chosen})


def _write(out: Store, found: Findings, suspects: pd.DataFrame, page: str) -> None:
    files = {
        SUSPECTS: to_csv(suspects),
        PAGE: page.encode(),
        SUMMARY: (json.dumps(found.to_dict(), indent=1) + "\n").encode(),
    }
    for path, payload in files.items():
        out.write_bytes(path, payload)


def _log(config: Config, out: Store, found: Findings, page: str) -> None:
    shown = set(re.findall(r'(?:src|href)="(train-normal/maps/[^"]+)"', page))
    pictures = sorted(shown & set(out.list("train-normal/maps/")))
    metrics = {f"audit/{name}": value for name, value in found.numbers().items()}
    files = StoredFiles(out, "audit/", [SUSPECTS, PAGE, SUMMARY, *pictures])
    log_results(config, metrics, files)
