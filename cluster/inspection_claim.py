"""Which job a directory of results belongs to: one only, so that scores of two are never mixed."""

import json
from typing import Any

from cluster.calibration import decide, describe
from cluster.errors import UserError
from cluster.inputs import Inspected
from cluster.inspection_files import (
    CLAIM,
    MANIFEST,
    drop_summary,
    finished_units,
    read_manifest,
    update_rows,
)
from cluster.inspector import Job
from cluster.model_store import DECISION_FIELDS, Calibration, ModelCard
from data.store import Store


def claim(job: Job, card: ModelCard, inspected: Inspected) -> None:
    """Make a job's directory its own.

    Scores of the validation split belong to the calibration being fitted: those of an older one are
    removed. Where only the rule of the decision is another one, the scores there are decided anew.

    Raises:
        UserError: If the directory holds another job.
    """
    identity = _identity(job, card, inspected)
    differing = _differing(job, identity, inspected)
    if differing and job.calibration:
        # Until all are decided anew, they are those of no rule.
        _write_claim(job.out, identity | {"decision": None})
        _decide_again(job, job.calibration)
    elif differing:
        for path in job.out.list():
            job.out.delete(path)
    _write_claim(job.out, identity)


def kept_units(job: Job, card: ModelCard, inspected: Inspected) -> set[str]:
    """Names of the finished units that `claim` would leave finished; changes nothing.

    Raises:
        UserError: If the directory holds another job.
    """
    differing = _differing(job, _identity(job, card, inspected), inspected)
    return set() if differing and not job.calibration else set(finished_units(job.out))


def _identity(job: Job, card: ModelCard, inspected: Inspected) -> dict[str, Any]:
    calibration = job.calibration.model_dump(mode="json") if job.calibration else {}
    return {
        "data_uri": inspected.uri,
        "dataset_sha256": inspected.sha256,
        "unit_images": inspected.unit_images,
        "weights_sha256": card.weights_sha256,
        "encoder_sha256": card.encoder_sha256,
        "search": job.search.model_dump(mode="json"),
        "seed": job.seed,
        "decision": {name: calibration.pop(name, None) for name in DECISION_FIELDS},
        "calibration": calibration or None,
    }


def _differing(job: Job, identity: dict[str, Any], inspected: Inspected) -> list[str]:
    """In what the job that is there, if any, is another one: nothing, or what `claim` can mend.

    Raises:
        UserError: If it is something else.
    """
    # Scores without a claim are nobody's: what cleared the directory was killed.
    if job.out.exists(CLAIM):
        old = json.loads(job.out.read_bytes(CLAIM))
    else:
        old = {} if finished_units(job.out) else identity
    differing = [name for name, value in identity.items() if value != old.get(name)]
    if not job.calibration or differing in ([], ["decision"]):
        return differing
    if not old:
        told = f"{job.out.uri} holds scores, but no {CLAIM} that tells what they are of"
    elif differing == ["dataset_sha256"]:
        changed = "was packed anew since" if inspected.split else "holds other files than when"
        told = f"{inspected.uri} {changed} the inspection in {job.out.uri} began"
    else:
        told = f"{job.out.uri} holds an inspection with another {' and '.join(differing)}"
    raise UserError(f"{told}; choose another inspect.dir or remove that folder")


def _write_claim(out: Store, identity: dict[str, Any]) -> None:
    out.write_bytes(CLAIM, json.dumps(identity, indent=1).encode())


def _decide_again(job: Job, calibration: Calibration) -> None:
    """Put other decisions in the place of those there; killed midway, it is done again."""
    old = read_manifest(job.out) if job.out.exists(MANIFEST) else None
    drop_summary(job.out)
    update_rows(job.out, lambda rows: decide(calibration, [row["score"] for row in rows]))
    if old:
        new = {"calibration": calibration.model_dump(), "decision": describe(calibration)}
        job.out.write_bytes(MANIFEST, json.dumps(old | new, indent=1).encode())
