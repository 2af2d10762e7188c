"""Calibration on validation scores, other rules without another search, and what is told."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cluster.calibration import (
    calibration_for,
    choosing,
    decide,
    describe,
    fit_calibration,
    fit_score,
    maps_of,
)
from cluster.claims import check_dataset
from cluster.config import Config, load_config
from cluster.errors import UserError
from cluster.model_store import MODEL, ModelCard, load_card, save_card
from data.dataset import DatasetIndex, ShardInfo
from data.store import Store
from gan.evidence import LOGIT, term_names
from gan.thresholds import NEED_ABNORMAL, RULES

NORMAL = [*np.linspace(0.0, 1.0, 99)]
ABNORMAL = [0.9, 1.5, 2.0, 2.5, 3.0]


def _validation(normal: list[float], abnormal: list[float]) -> pd.DataFrame:
    scores = [*normal, *abnormal, 7.0]
    labels = ["normal"] * len(normal) + ["abnormal"] * len(abnormal) + ["unlabelled"]
    return pd.DataFrame({"label": labels, "score": scores, "peak": np.array(scores) * 2})


def _card(config: Config) -> ModelCard:
    return ModelCard(
        schema_version=1,
        code_version="0.1.0",
        architecture=config.networks.architecture(1).to_dict(),
        normalisation="",
        objective=config.objective,
        images_seen=0,
        weights_sha256="",
        calibration=None,
    )


def _run(folder: Path, fitted: Config, abnormal: list[float]) -> None:
    """A run directory whose model is calibrated, without weights."""
    calibration = fit_calibration(fitted, _validation(NORMAL, abnormal))
    save_card(Store(str(folder)), _card(fitted).model_copy(update={"calibration": calibration}))


def _parts(num_normal: int, num_abnormal: int, images: int = 3) -> pd.DataFrame:
    """So many parts of three images; every second image of a defective part shows nothing."""
    normal = [("normal", f"n{part}") for part in range(num_normal) for _ in range(images)]
    abnormal = [
        ("normal" if image % 2 else "abnormal", f"a{part}")
        for part in range(num_abnormal)
        for image in range(images)
    ]
    return pd.DataFrame(normal + abnormal, columns=["label", "group"])


def test_half_of_the_parts_choose_the_score_and_the_others_decide() -> None:
    table = _parts(20, 7)
    chooses = choosing(load_config(None, {}), table)
    by_part = pd.Series(chooses).groupby(table["group"]).agg(["min", "max"])
    assert (by_part["min"] == by_part["max"]).all()
    assert by_part["min"].groupby(by_part.index.str[0]).sum().to_dict() == {"a": 3, "n": 10}
    # Whoever else is there, and in which order.
    again = choosing(load_config(None, {}), table.iloc[::-1].reset_index(drop=True))
    assert (again[::-1] == chooses).all()


@pytest.mark.parametrize(
    ("num_normal", "num_abnormal", "settings"),
    [
        (1, 2, {"inspect.false_positive_rate": 0.4}),
        (6, 4, {"inspect.false_positive_rate": 0.05}),
        (20, 7, {"search.statistic": "mean"}),
        # Nine of twelve would have to decide, but a half is six; see check_dataset.
        (60, 12, {"inspect.threshold": "reject_band", "inspect.miss_rate": 0.1}),
    ],
)
def test_nobody_chooses_where_too_few_would_decide(
    num_normal: int, num_abnormal: int, settings: dict[str, object]
) -> None:
    table = _parts(num_normal, num_abnormal, images=2)
    assert not choosing(load_config(None, settings), table).any()


@pytest.mark.parametrize("num_abnormal", [0, 1])
def test_normal_parts_alone_fix_the_scales_where_defects_cannot_be_halved(
    num_abnormal: int,
) -> None:
    table = _parts(20, num_abnormal, images=2)
    chosen = table["group"][choosing(load_config(None, {}), table)]
    assert chosen.nunique() == 10
    assert chosen.str.startswith("n").all()


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_logits_count_where_d_was_shown_known_defects(tmp_path: Path, alpha: float) -> None:
    config = load_config(None, {"run.dir": str(tmp_path), "objective.alpha": alpha})
    card = _card(config)
    save_card(Store(str(tmp_path)), card)
    num_terms = len(term_names(maps_of(card, config.search)))
    terms = np.random.default_rng(0).normal(size=(40, 1, num_terms))
    table = _parts(40, 0, images=1).assign(terms=list(terms))
    fusion = fit_score(config, table, np.zeros(40, dtype=bool))
    assert fusion
    counts = [w for name, w in zip(fusion.names, fusion.weight, strict=True) if LOGIT in name]
    assert any(counts) == (alpha > 0)


def test_calibration_keeps_the_false_positive_rate_on_its_own_images() -> None:
    scores = np.random.default_rng(0).random(99).tolist()
    config = load_config(None, {"inspect.false_positive_rate": 0.1})
    calibration = fit_calibration(config, _validation(scores, []))
    flagged = [row["decision"] for row in decide(calibration, scores)]
    assert flagged.count("abnormal") == 9
    assert calibration.map_scale == pytest.approx(2 * np.quantile(scores, 0.95) * 2)
    assert set(calibration.thresholds) == {"false_positive_rate"}


@pytest.mark.parametrize(
    ("rule", "statistic", "has_hint"),
    [
        ("false_positive_rate", "fused", True),
        ("false_positive_rate", "mean", False),
        ("zero_escape", "fused", False),
    ],
)
def test_too_few_normals_for_a_rule_are_told_where_others_may_have_chosen(
    rule: str, statistic: str, has_hint: bool
) -> None:
    config = load_config(None, {"inspect.threshold": rule, "search.statistic": statistic})
    with pytest.raises(UserError, match=f"inspect.threshold={rule}") as told:
        fit_calibration(config, _validation(NORMAL[:5], []))
    assert ("others may have chosen the score" in str(told.value)) == has_hint


@pytest.mark.parametrize(
    ("rule", "low", "high"),
    [
        ("false_positive_rate", NORMAL[94], NORMAL[95]),
        ("best_f1", 1.0, 1.5),
        ("zero_escape", 0.8999, 0.9),
    ],
)
def test_rules_of_one_threshold(rule: str, low: float, high: float) -> None:
    config = load_config(None, {"inspect.threshold": rule})
    calibration = fit_calibration(config, _validation(NORMAL, ABNORMAL))
    decisions = [row["decision"] for row in decide(calibration, [low, high])]
    assert decisions == ["normal", "abnormal"]


def test_reject_band_leaves_what_lies_between_for_review() -> None:
    config = load_config(None, {"inspect.threshold": "reject_band"})
    calibration = fit_calibration(config, _validation(NORMAL, ABNORMAL))
    rows = decide(calibration, [0.5, 0.91, 0.94, 0.99, 4.0])
    assert [row["decision"] for row in rows] == ["normal", *["review"] * 2, *["abnormal"] * 2]
    assert [row["p_value"] <= 0.05 for row in rows] == [False, False, False, True, True]


@pytest.mark.parametrize("rule", RULES)
def test_another_rule_needs_no_other_search(tmp_path: Path, rule: str) -> None:
    fitted = load_config(None, {"run.dir": str(tmp_path)})
    _run(tmp_path, fitted, ABNORMAL)
    wanted = {"inspect.threshold": rule, "inspect.false_positive_rate": 0.2}
    config = load_config(None, {"run.dir": str(tmp_path)} | wanted)
    expected = fit_calibration(config, _validation(NORMAL, ABNORMAL))
    assert calibration_for(config) == expected
    kept = load_card(Store(str(tmp_path)), MODEL).calibration
    assert kept
    assert kept.rule == "false_positive_rate", "asking for a rule must not change the model"
    assert kept.false_positive_rate == 0.05


_FUSION = {"names": ["logit/mean"], "centre": [0.0], "spread": [1.0], "weight": [1.0]}


@pytest.mark.parametrize(
    ("gone", "older"),
    [
        ("thresholds", {"threshold": 1.0}),
        ("fusion", {}),
        ("fusion", {"fusion": _FUSION}),
        ("fusion", {"fusion": _FUSION | {"version": 1}}),
        ("fusion", {"fusion": _FUSION | {"version": 2}}),
    ],
)
def test_calibration_of_an_older_form_is_asked_for_again(
    tmp_path: Path, gone: str, older: dict[str, object]
) -> None:
    config = load_config(None, {"run.dir": str(tmp_path)})
    _run(tmp_path, config, ABNORMAL)
    path = tmp_path / "model" / "model.json"
    card = json.loads(path.read_text())
    del card["calibration"][gone]
    path.write_text(json.dumps(card | {"calibration": card["calibration"] | older}))
    with pytest.raises(UserError, match="is not calibrated; calibrate first"):
        calibration_for(config)


def test_another_search_is_refused(tmp_path: Path) -> None:
    _run(tmp_path, load_config(None, {"run.dir": str(tmp_path)}), ABNORMAL)
    config = load_config(None, {"run.dir": str(tmp_path), "search.steps": 7})
    with pytest.raises(UserError, match=r"search\.steps=7 is not the 100 .*or calibrate first"):
        calibration_for(config)


@pytest.mark.parametrize("rule", NEED_ABNORMAL)
def test_rule_about_defects_without_defects_is_one_clear_error(tmp_path: Path, rule: str) -> None:
    _run(tmp_path, load_config(None, {"run.dir": str(tmp_path)}), [])
    config = load_config(None, {"run.dir": str(tmp_path), "inspect.threshold": rule})
    told = f"inspect.threshold={rule} .*needs known abnormal.*only the rule false_positive_rate"
    for fit in (calibration_for, lambda c: fit_calibration(c, _validation(NORMAL, []))):
        with pytest.raises(UserError, match=told):
            fit(config)


def test_too_few_normal_images_cannot_calibrate() -> None:
    config = load_config(None, {})
    with pytest.raises(UserError, match="needs at least 19 normal validation images, there are 5"):
        fit_calibration(config, _validation([0.1] * 5, []))
    with pytest.raises(UserError, match="no normal images"):
        fit_calibration(config, _validation([], ABNORMAL))


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        (
            {},
            "abnormal above score 0.9592 (at most 0.05 of normal images, by 99 validation normals)",
        ),
        ({"threshold": "best_f1"}, "from score 1.5 on (best F1 on 99 validation normals and 5 def"),
        (
            {"threshold": "zero_escape"},
            "from score 0.9 on (misses at most 0 of 5 known validation defects, and a new one like "
            "them with probability at most 1/6)",
        ),
        (
            {"threshold": "reject_band", "miss_rate": 0.4},
            "normal below score 0.9592 (misses at most 1 of 5 known validation defects, and a new "
            "one like them with probability at most 2/6), abnormal from 1.5 on (at most 0.05 of",
        ),
    ],
)
def test_decision_is_told_with_what_it_rests_on(wanted: dict[str, object], told: str) -> None:
    config = load_config(None, {f"inspect.{name}": value for name, value in wanted.items()})
    assert told in describe(fit_calibration(config, _validation(NORMAL, ABNORMAL)))


@pytest.mark.parametrize(
    ("wanted", "labels", "told"),
    [
        ({}, {"normal": 18, "abnormal": 9}, "false_positive_rate=0.05 needs 19 normal valid"),
        (
            {"threshold": "zero_escape"},
            {"normal": 18},
            "threshold=zero_escape needs known abnormal",
        ),
        ({"threshold": "best_f1"}, {"abnormal": 5}, "no normal validation images"),
        (
            {"threshold": "reject_band", "miss_rate": 0.1},
            {"normal": 99, "abnormal": 8},
            "miss_rate=0.1 needs 9 abnormal validation images",
        ),
    ],
)
def test_training_is_refused_where_calibration_would_fail(
    wanted: dict[str, object], labels: dict[str, int], told: str
) -> None:
    index = _index(labels)
    config = load_config(None, {f"inspect.{name}": value for name, value in wanted.items()})
    with pytest.raises(UserError, match=told):
        check_dataset(config, index)
    enough = index.model_copy(update={"labels": {"validation": {"normal": 99, "abnormal": 9}}})
    check_dataset(config, enough)
    # A hundred tiles may be of one image, and calibration puts them together.
    tiled = enough.model_copy(update={"mode": "tiles", "images": {"validation": labels}})
    with pytest.raises(UserError, match=told):
        check_dataset(config, tiled)
    abnormal = [one for one in index.shards if one.split != "train-normal"]
    with pytest.raises(UserError, match=r"no image in train-normal; .*pack\.normal_kinds"):
        check_dataset(config, enough.model_copy(update={"shards": tuple(abnormal)}))


@pytest.mark.parametrize("labels", [{"normal": 99}, {"normal": 99, "unlabelled": 9}])
def test_training_is_refused_where_no_auroc_can_be_measured(labels: dict[str, int]) -> None:
    check_dataset(load_config(None, {}), _index(labels))
    config = load_config(None, {"tracking.validation_images": 8})
    with pytest.raises(UserError, match=r"validation_images=8 needs .* has 99 and 0; add some"):
        check_dataset(config, _index(labels))
    check_dataset(config, _index({"normal": 99, "abnormal": 1}))


def _index(validation: dict[str, int]) -> DatasetIndex:
    shard = {"samples": 9, "bytes": 1, "sha256": "0" * 64, "resolution": 256}
    shards = [
        ShardInfo(path=f"{split}.tar", split=split, **shard)
        for split in ("train-normal", "train-abnormal")
    ]
    return DatasetIndex(
        name="parts",
        channels=1,
        resolution=256,
        resolutions=(256,),
        shards=tuple(shards),
        labels={"validation": validation},
        kinds={},
        seed=0,
    )
