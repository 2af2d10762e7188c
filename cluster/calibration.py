"""From validation scores to decisions: fitting the thresholds, choosing a rule, and its words."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cluster.config import Config
from cluster.errors import UserError
from cluster.model_store import Calibration, ModelCard, load_card
from cluster.search_config import Search
from data.store import Store
from gan.evidence import map_names, term_names
from gan.fusion import Fusion, fit_fusion
from gan.model import Architecture
from gan.thresholds import (
    NEED_ABNORMAL,
    RULES,
    Rule,
    Thresholds,
    conformal_p_values,
    fit_thresholds,
    needed_images,
    num_escaping,
)

_HALVED = "; others may have chosen the score: search.statistic mean or window leaves all"
_LEAST_NORMALS = 2
"""Normal images without which a score has no scale."""
_MAP_SHARE = 0.05
"""Share of normal validation images whose peak lies above half of a map's full scale."""


def choosing(config: Config, table: pd.DataFrame) -> NDArray[np.bool_]:
    """Which validation images choose the score `fused`; the others fit what is decided by it.

    A threshold keeps its promise only where the score was fixed without the images that it is
    fitted on (split-conformal, Papadopoulos et al. 2002). So half of the parts that show a known
    defect, and half of the others, choose; a digest of their names says which. A single part with
    defects decides. Nobody chooses where one half would lack two normal images, or the other the
    images that the rates of inspect.threshold ask for.

    Args:
        config: Configuration the images were scored with.
        table: Scored validation images.

    Returns:
        [N].
    """
    groups, is_normal = table["group"], table["label"] == "normal"
    with_defect = set(groups[table["label"] == "abnormal"])
    half = set[str]()
    for names in (with_defect, set(groups) - with_defect):
        half.update(sorted(names, key=_digest)[1::2])
    chosen = np.asarray(groups.isin(half), dtype=np.bool_)
    decides, inspect = ~chosen, config.inspect
    enough = (
        config.search.statistic == "fused"
        and (chosen & is_normal).sum() >= _LEAST_NORMALS
        and (decides & is_normal).sum() >= needed_images(inspect.false_positive_rate)
    )
    if inspect.threshold == "reject_band" and inspect.miss_rate:
        enough &= (decides & ~is_normal).sum() >= needed_images(inspect.miss_rate)
    return chosen & bool(enough)


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def fit_score(config: Config, table: pd.DataFrame, chooses: NDArray[np.bool_]) -> Fusion | None:
    """Fit the score `fused` on validation images; None where search.statistic is another one.

    Args:
        config: Configuration the images were scored with.
        table: Scored validation images, with the `terms` of their tiles.
        chooses: [N] those that choose it, see `choosing`; if none, all normal ones fit its scales.

    Raises:
        UserError: If there is no normal image.
    """
    if config.search.statistic != "fused":
        return None
    used = table[chooses] if chooses.any() else table[table["label"] == "normal"]
    normal, abnormal = (terms_of(used[used["label"] == it]) for it in ("normal", "abnormal"))
    if not normal:
        raise _no_normals(config)
    card = load_card(Store(config.run.dir))
    return fit_fusion(maps_of(card, config.search), normal, abnormal, alpha=card.objective.alpha)


def maps_of(card: ModelCard, search: Search) -> tuple[str, ...]:
    """Names of the maps that a model and a search give of an image."""
    architecture = Architecture.from_dict(card.architecture)
    return map_names(
        architecture.num_levels(),
        architecture.num_heads,
        with_contrast=search.local_contrast > 0,
    )


def terms_of(table: pd.DataFrame) -> list[NDArray[np.float64]]:
    """Terms of each image's tiles, [T, K]."""
    return [np.array(list(tiles)) for tiles in table["terms"]]


def _peaks(table: pd.DataFrame, fusion: Fusion | None, *, with_logit: bool) -> NDArray[np.float64]:
    """Peak of each image's map; of a map that was not drawn yet the most that it can be."""
    if fusion is None:
        return np.asarray(table["peak"], dtype=np.float64)
    return fusion.map_peaks(terms_of(table), with_logit=with_logit)


def fused_scores(fusion: Fusion, rows: Sequence[dict[str, Any]]) -> list[float]:
    """Scores of scored images by their terms."""
    return [float(s) for s in fusion.image_scores([np.array(row["terms"]) for row in rows])]


def fit_calibration(
    config: Config, table: pd.DataFrame, fusion: Fusion | None = None
) -> Calibration:
    """Fit thresholds and map scale on scored validation images.

    Args:
        config: Configuration the images were scored with.
        table: Scores of the validation images that did not choose the score.
        fusion: How the scores were made of their terms, see `fit_score`.

    Raises:
        UserError: If there are too few images for the rule that is asked for.
    """
    normal = table[table["label"] == "normal"]
    normal_scores = sorted(map(float, normal["score"]))
    abnormal_scores = sorted(map(float, table.loc[table["label"] == "abnormal", "score"]))
    if not normal_scores:
        raise _no_normals(config)
    peaks = _peaks(normal, fusion, with_logit=config.search.logit_in_map)
    return Calibration(
        search=config.search,
        seed=config.run.seed,
        normal_scores=tuple(normal_scores),
        abnormal_scores=tuple(abnormal_scores),
        fusion=fusion,
        map_scale=2.0 * float(np.quantile(peaks, 1.0 - _MAP_SHARE)),
        false_positive_rate=config.inspect.false_positive_rate,
        miss_rate=config.inspect.miss_rate,
        rule=config.inspect.threshold,
        thresholds=_fit_all(config, normal_scores, abnormal_scores),
    )


def calibration_for(config: Config) -> Calibration:
    """The model's calibration for the rule and rates of this inspection.

    Those are fitted again on the validation scores that the calibration holds; the scores
    themselves must come from the same search.

    Raises:
        UserError: If the model is not calibrated, was so with another search, or on too few images.
    """
    card = load_card(Store(config.run.dir))
    calibration = card.calibration
    again = (
        "calibrate first, with the same settings and `python -m cluster inspect "
        f"--run.dir {config.run.dir} --inspect.split validation`"
    )
    if calibration is None:
        raise UserError(f"the model in {config.run.dir} is not calibrated; {again}")
    fusion = calibration.fusion
    if fusion and fusion.names != term_names(maps_of(card, calibration.search)):
        raise UserError(
            f"the model in {config.run.dir} was calibrated by a version with other terms; {again}"
        )
    pairs = [
        (f"search.{field}", value, getattr(calibration.search, field))
        for field, value in config.search.model_dump().items()
    ]
    pairs.append(("run.seed", config.run.seed, calibration.seed))
    for field, value, fitted in pairs:
        if value != fitted:
            raise UserError(
                f"{field}={value!r} is not the {fitted!r} the model in {config.run.dir} was "
                f"calibrated with; use that value, or {again}"
            )
    return calibration.model_copy(
        update={
            "false_positive_rate": config.inspect.false_positive_rate,
            "miss_rate": config.inspect.miss_rate,
            "rule": config.inspect.threshold,
            "thresholds": _fit_all(config, calibration.normal_scores, calibration.abnormal_scores),
        }
    )


def _no_normals(config: Config) -> UserError:
    return UserError(
        f"cannot calibrate on {config.data.uri}: its validation split has no normal images; "
        "add some and pack again"
    )


def decide(calibration: Calibration, scores: Sequence[float]) -> list[dict[str, Any]]:
    """`p_value` and `decision` of each score, as columns of the scores."""
    p_values = conformal_p_values(scores, calibration.normal_scores)
    decisions = calibration.chosen.decide(scores)
    return [
        {"p_value": float(p_value), "decision": decision}
        for p_value, decision in zip(p_values, decisions, strict=True)
    ]


def describe(calibration: Calibration) -> str:
    """The decision in words, with what it rests on and what it promises."""
    chosen = calibration.chosen
    num_normal, num_abnormal = len(calibration.normal_scores), len(calibration.abnormal_scores)
    alarms = (
        f"at most {calibration.false_positive_rate:.3g} of normal images, "
        f"by {num_normal} validation normals"
    )
    if calibration.rule == "false_positive_rate":
        return f"abnormal above score {chosen.high:.4g} ({alarms})"
    if calibration.rule == "best_f1":
        return (
            f"abnormal from score {chosen.high:.4g} on (best F1 on {num_normal} validation normals "
            f"and {num_abnormal} defects)"
        )
    if calibration.rule == "zero_escape":
        return f"abnormal from score {chosen.high:.4g} on ({_misses(1, num_abnormal)})"
    k = num_escaping(num_abnormal, calibration.miss_rate)
    return (
        f"normal below score {chosen.low:.4g} ({_misses(k, num_abnormal)}), "
        f"abnormal from {chosen.high:.4g} on ({alarms}), review between"
    )


def _misses(k: int, num_abnormal: int) -> str:
    """The promise of `gan.thresholds.escape_threshold`."""
    return (
        f"misses at most {k - 1} of {num_abnormal} known validation defects, and a new one like "
        f"them with probability at most {k}/{num_abnormal + 1}"
    )


def _fit_all(
    config: Config, normal_scores: Sequence[float], abnormal_scores: Sequence[float]
) -> dict[Rule, Thresholds]:
    """Thresholds of every rule that can be fitted; the one asked for must be among them."""
    found: dict[Rule, Thresholds] = {}
    for rule in RULES:
        try:
            found[rule] = fit_thresholds(
                rule,
                normal_scores,
                abnormal_scores,
                false_positive_rate=config.inspect.false_positive_rate,
                miss_rate=config.inspect.miss_rate,
            )
        except ValueError as error:
            if rule == config.inspect.threshold:
                lacks_normals = len(abnormal_scores) > 0 or rule not in NEED_ABNORMAL
                fused = config.search.statistic == "fused" and lacks_normals
                raise UserError(
                    f"cannot decide by inspect.threshold={rule} on {config.data.uri}: {error}"
                    + (_HALVED if fused else "")
                ) from None
    return found
