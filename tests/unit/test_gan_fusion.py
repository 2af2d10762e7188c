"""One score of several terms: scale from normals, weights by validation, tiles, dead terms."""

import functools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gan.evidence import (
    LOCAL_CONTRAST,
    LOGIT,
    STATISTICS,
    Evidence,
    fused_map,
    map_names,
    statistics,
    term_names,
)
from gan.fusion import Fusion, fit_fusion

MAPS = map_names(1, 1)
NAMES = term_names(MAPS)
K = len(NAMES)
Terms = NDArray[np.float64]


_fit = functools.partial(fit_fusion, alpha=1.0)


def _normals(count: int = 400) -> Terms:
    """Terms on scales that differ by 10^6."""
    scale = np.logspace(-3, 3, K)
    return np.random.default_rng(0).normal(5.0, 1.0, size=(count, K)) * scale


def _images(terms: Terms) -> list[Terms]:
    return list(terms[:, None])


def _shifted(terms: Terms, name: str, spreads: float) -> Terms:
    """Every statistic whose name starts so, moved up."""
    moved = terms.copy()
    for column, term in enumerate(NAMES):
        if term.startswith(name):
            moved[:, column] += spreads * terms[:, column].std()
    return moved


def _weight(fusion: Fusion, name: str) -> float:
    return fusion.weight[NAMES.index(name)]


def test_scale_of_a_term_does_not_matter() -> None:
    normal = _normals()
    fusion = _fit(MAPS, _images(normal), [])
    other = _fit(MAPS, _images(normal * 7.0), [])
    np.testing.assert_allclose(fusion.scores(normal), other.scores(normal * 7.0), rtol=1e-9)


def test_centre_and_spread_are_those_of_normals() -> None:
    normal = _normals(20_000)
    fusion = _fit(MAPS, _images(normal), [])
    np.testing.assert_allclose(fusion.centre, np.median(normal, axis=0))
    np.testing.assert_allclose(fusion.spread, normal.std(axis=0), rtol=0.03)


def test_without_known_defects_windows_count() -> None:
    fusion = _fit(MAPS, _images(_normals()), [])
    assert _weight(fusion, f"{LOGIT}/window") == 1.0
    assert _weight(fusion, "residual/window") == _weight(fusion, "feature-0/window") == 0.5
    assert _weight(fusion, "residual/mean") == 0.0


@pytest.mark.parametrize("telling", ["residual/mean", "residual/peak"])
def test_the_statistic_that_tells_validation_images_apart_counts(telling: str) -> None:
    normal = _normals()
    abnormal = _shifted(_normals(900)[500:], telling, 3.0)
    fusion = _fit(MAPS, _images(normal), _images(abnormal))
    assert _weight(fusion, telling) == 0.5
    assert _weight(fusion, f"{LOGIT}/{telling.partition('/')[2]}") == 1.0


def test_each_head_that_judges_patches_counts_as_much_as_the_one_of_an_image() -> None:
    names = term_names(map_names(2, 3))
    draw = np.random.default_rng(0)
    fusion = _fit(map_names(2, 3), _images(draw.normal(size=(50, len(names)))), [])
    weights = dict(zip(names, fusion.weight, strict=True))
    assert {name: weight for name, weight in weights.items() if weight} == {
        **dict.fromkeys(("residual/window", "feature-0/window", "feature-1/window"), 1 / 3),
        **{f"{LOGIT}-{head}/window": 1.0 for head in range(3)},
    }


def test_a_logit_accuses_and_never_acquits() -> None:
    normal = _normals()
    fusion = _fit(MAPS, _images(normal), [])
    image = np.median(normal, axis=0, keepdims=True)
    before = fusion.scores(image)
    assert fusion.scores(_shifted_by(image, fusion, -50.0)) > before - np.log(2.0)
    risen = fusion.scores(_shifted_by(image, fusion, 50.0)) - before
    assert risen == pytest.approx(50.0, rel=0.02)


def _shifted_by(terms: Terms, fusion: Fusion, spreads: float) -> Terms:
    """Logits moved by so many spreads of normal images."""
    is_logit = [name.startswith(LOGIT) for name in NAMES]
    return np.where(is_logit, terms + spreads * np.array(fusion.spread), terms)


def test_a_discriminator_that_was_shown_no_defect_accuses_nobody() -> None:
    normal = _normals()
    known = _shifted(_shifted(normal, LOGIT, 9.0), "residual", 1.0)
    fusion = fit_fusion(MAPS, _images(normal), _images(known), alpha=0.0)
    assert not any(_weight(fusion, name) for name in NAMES if name.startswith(LOGIT))
    assert sum(fusion.weight) == pytest.approx(1.0)
    moved = _shifted(normal, LOGIT, 9.0)
    np.testing.assert_array_equal(fusion.scores(moved), fusion.scores(normal))


def test_defects_that_hide_in_the_training_set_are_found_by_their_differences() -> None:
    """D knows the labelled ones by heart and takes the hidden ones for real."""
    draw = np.random.default_rng(1)
    normal, known, hidden, fresh = draw.normal(size=(4, 200, K))
    logits = [name.startswith(LOGIT) for name in NAMES]
    known += np.where(logits, 4.0, 1.0)
    hidden += np.where(logits, -1.0, 3.0)
    fusion = _fit(MAPS, _images(normal), _images(known))
    wins = fusion.scores(hidden)[:, None] > fusion.scores(fresh)
    assert wins.mean() > 0.97
    assert (fusion.scores(known)[:, None] > fusion.scores(fresh)).mean() > 0.999


def test_an_image_scores_as_its_most_suspicious_tile() -> None:
    normal = _normals()
    fusion = _fit(MAPS, [normal[i : i + 4] for i in range(0, 400, 4)], [])
    tiles = fusion.scores(normal[:4])
    assert fusion.image_scores([normal[:4], normal[4:5]]).tolist() == [
        tiles.max(),
        fusion.scores(normal[4:5])[0],
    ]


def test_a_term_that_never_changes_says_nothing() -> None:
    normal = _normals()
    normal[:, NAMES.index("feature-0/window")] = 0.25
    fusion = _fit(MAPS, _images(normal), [])
    odd = normal[:1].copy()
    odd[:, NAMES.index("feature-0/window")] = 0.2500001
    assert fusion.scores(odd) == fusion.scores(normal[:1])
    assert np.isfinite(fusion.scores(normal)).all()


def test_a_residual_that_only_misleads_is_left_out() -> None:
    normal = _normals()
    abnormal = _shifted(_shifted(_normals(900)[500:], "feature-0", 2.0), "residual", -4.0)
    fusion = _fit(MAPS, _images(normal), _images(abnormal))
    assert not any(_weight(fusion, f"residual/{statistic}") for statistic in STATISTICS)
    assert "residual" not in fusion.map_weights()


@pytest.mark.parametrize(("telling", "weight"), [("feature-0", 0.5), (LOCAL_CONTRAST, 1.0)])
def test_local_contrast_counts_even_where_it_tells_nothing(telling: str, weight: float) -> None:
    maps = map_names(1, 1, with_contrast=True)
    names = term_names(maps)
    draw = np.random.default_rng(0)
    normal, abnormal = draw.normal(size=(400, len(names))), draw.normal(size=(400, len(names)))
    abnormal[:, [name.startswith(telling) for name in names]] += 3.0
    fusion = _fit(maps, _images(normal), _images(abnormal))
    weights = dict(zip(names, fusion.weight, strict=True))
    assert sum(weights[f"{LOCAL_CONTRAST}/{statistic}"] for statistic in STATISTICS) == weight
    assert LOCAL_CONTRAST in fusion.map_weights()


def test_the_map_has_the_weights_of_the_score_over_spread_and_no_image_logit() -> None:
    fusion = _fit(MAPS, _images(_normals()), [])
    column = NAMES.index("feature-0/window")
    assert fusion.map_weights().keys() == {"residual", "feature-0"}
    assert fusion.map_weights()["feature-0"] == fusion.weight[column] / fusion.spread[column]


def test_the_image_logit_is_all_over_the_map_where_it_is_asked_for() -> None:
    torch.manual_seed(0)
    logit = torch.randn(20, 1, 1) * 3
    found = Evidence(residual=torch.rand(20, 8, 8), levels=[torch.rand(20, 4, 4)], logits=[logit])
    terms = statistics(found, window=3).double().numpy()
    fusion = _fit(map_names(1, 1), _images(terms), [])
    without, weights = fusion.map_weights(), fusion.map_weights(with_logit=True)
    assert weights.keys() == {*without, "logit"}
    lifted = fused_map(found, weights) - fused_map(found, without)
    told = weights["logit"] * torch.log1p(logit.exp())
    torch.testing.assert_close(lifted, told.expand(20, 8, 8))
    peaks = fused_map(found, weights).amax(dim=(1, 2)).numpy()
    most = fusion.map_peaks(_images(terms), with_logit=True)
    assert (peaks <= most * (1 + 1e-5)).all()
    assert (peaks > fusion.map_peaks(_images(terms))).any()


def test_no_map_exceeds_the_peak_told_of_it() -> None:
    torch.manual_seed(0)
    found = Evidence(
        residual=torch.rand(20, 8, 8),
        levels=[torch.rand(20, 4, 4), torch.rand(20, 2, 2)],
        logits=[torch.randn(20, 4, 4) * 3, torch.randn(20, 2, 2) * 3],
    )
    maps = map_names(2, 2)
    terms = statistics(found, window=3).double().numpy()
    fusion = _fit(maps, _images(terms), [])
    peaks = fused_map(found, fusion.map_weights()).amax(dim=(1, 2)).numpy()
    told = fusion.map_peaks(_images(terms))
    assert (peaks <= told * (1 + 1e-5)).all()
    assert (peaks > told / 2).all()
    pairs = fusion.map_peaks([terms[i : i + 2] for i in range(0, 20, 2)])
    np.testing.assert_array_equal(pairs, told.reshape(10, 2).max(axis=1))
