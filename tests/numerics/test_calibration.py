"""The promise of a threshold on a score that was itself chosen on validation, by simulation."""

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from cluster.calibration import choosing
from cluster.config import load_config
from gan.evidence import map_names, term_names
from gan.fusion import fit_fusion
from gan.thresholds import conformal_threshold, escape_threshold

MAPS = map_names(3, 1)
NUM_TERMS = len(term_names(MAPS))
NUM_NORMAL, NUM_ABNORMAL, NUM_NEW, NUM_TRIALS = 80, 20, 200, 250
CONFIG = load_config(None, {"inspect.false_positive_rate": 0.1})


def _missed(trial: int, *, halved: bool) -> float:
    """Share of new defects below the threshold that misses none of those known."""
    draw = np.random.default_rng(trial)
    labels = np.repeat(["normal", "abnormal"], [NUM_NORMAL, NUM_ABNORMAL])
    table = pd.DataFrame({"label": labels, "group": [f"part-{n}" for n in range(len(labels))]})
    terms = draw.normal(size=(len(table), 1, NUM_TERMS)) + (labels == "abnormal")[:, None, None]
    new = draw.normal(size=(NUM_NEW, NUM_TERMS)) + 1
    chooses = choosing(CONFIG, table) if halved else np.ones(len(table), bool)
    decides = ~chooses if halved else chooses
    normal, abnormal = (list(terms[chooses & (labels == it)]) for it in ("normal", "abnormal"))
    fusion = fit_fusion(MAPS, normal, abnormal, alpha=1.0)
    known: NDArray[np.float64] = fusion.image_scores(list(terms[decides & (labels == "abnormal")]))
    return float((fusion.scores(new) < escape_threshold(list(known), 0.0)).mean())


@pytest.mark.parametrize(("halved", "num_known"), [(True, 10), (False, 20)])
def test_a_threshold_keeps_its_promise_only_where_others_chose_the_score(
    halved: bool, num_known: int
) -> None:
    """P(a new defect is missed) <= 1 / (m + 1), over the draw of all images."""
    missed = np.array([_missed(trial, halved=halved) for trial in range(NUM_TRIALS)])
    margin = 3 * missed.std() / np.sqrt(NUM_TRIALS)
    promised = 1 / (num_known + 1)
    assert (missed.mean() <= promised + margin) == halved


def _alarms(trial: int, num_normal: int) -> float:
    """Share of new normal images above a threshold for 5 %, where no defect is known."""
    draw = np.random.default_rng(trial)
    table = pd.DataFrame({"label": "normal", "group": [f"part-{n}" for n in range(num_normal)]})
    terms = draw.lognormal(size=(num_normal, 1, NUM_TERMS))
    chooses = choosing(load_config(None, {"inspect.false_positive_rate": 0.05}), table)
    used = list(terms[chooses] if chooses.any() else terms)
    fusion = fit_fusion(MAPS, used, [], alpha=1.0)
    threshold = conformal_threshold(fusion.image_scores(list(terms[~chooses])), 0.05)
    return float((fusion.scores(draw.lognormal(size=(NUM_NEW, NUM_TERMS))) > threshold).mean())


@pytest.mark.parametrize(("num_normal", "halved"), [(38, True), (19, False)])
def test_the_false_positive_rate_holds_where_other_normals_fixed_the_scales(
    num_normal: int, halved: bool
) -> None:
    """P(a new normal image is called abnormal) <= 0.05; 19 normals decide in both cases."""
    alarms = np.array([_alarms(trial, num_normal) for trial in range(4 * NUM_TRIALS)])
    margin = 3 * alarms.std() / np.sqrt(len(alarms))
    assert (alarms.mean() <= 0.05 + margin) == halved
