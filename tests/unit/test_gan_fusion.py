"""One score of several terms: scale from normals, weights by validation, tiles, dead terms."""

import numpy as np
import pytest
from numpy.typing import NDArray

from gan.evidence import LOGIT, term_names
from gan.fusion import LOGIT_WEIGHTS, Fusion, fit_fusion

NAMES = term_names(1)
K = len(NAMES)
Terms = NDArray[np.float64]


def _normals(count: int = 400) -> Terms:
    """Terms on scales that differ by 10^6."""
    scale = np.logspace(-3, 3, K)
    return np.random.default_rng(0).normal(5.0, 1.0, size=(count, K)) * scale


def _images(terms: Terms) -> list[Terms]:
    return list(terms[:, None])


def _shifted(terms: Terms, name: str, spreads: float) -> Terms:
    moved = terms.copy()
    moved[:, NAMES.index(name)] += spreads * terms[:, NAMES.index(name)].std()
    return moved


def _weight(fusion: Fusion, name: str) -> float:
    return fusion.weight[NAMES.index(name)]


def test_scale_of_a_term_does_not_matter() -> None:
    normal = _normals()
    fusion = fit_fusion(_images(normal), [])
    other = fit_fusion(_images(normal * 7.0), [])
    np.testing.assert_allclose(fusion.scores(normal), other.scores(normal * 7.0), rtol=1e-9)


def test_centre_and_spread_are_those_of_normals() -> None:
    normal = _normals(20_000)
    fusion = fit_fusion(_images(normal), [])
    np.testing.assert_allclose(fusion.centre, np.median(normal, axis=0))
    np.testing.assert_allclose(fusion.spread, normal.std(axis=0), rtol=0.03)


def test_without_known_defects_windows_and_the_first_share_of_the_logit_count() -> None:
    fusion = fit_fusion(_images(_normals()), [])
    assert _weight(fusion, LOGIT) == LOGIT_WEIGHTS[0]
    assert _weight(fusion, "residual/window") == _weight(fusion, "feature-0/window") == 0.5
    assert _weight(fusion, "residual/mean") == 0.0


@pytest.mark.parametrize(
    ("telling", "statistic", "share"),
    [(LOGIT, "window", max(LOGIT_WEIGHTS)), ("residual/mean", "mean", 0.0)],
)
def test_weights_go_to_what_tells_validation_images_apart(
    telling: str, statistic: str, share: float
) -> None:
    normal = _normals()
    abnormal = _shifted(_normals(900)[500:], telling, 3.0)
    fusion = fit_fusion(_images(normal), _images(abnormal))
    assert _weight(fusion, f"residual/{statistic}") == 0.5
    assert _weight(fusion, LOGIT) == share


def test_an_image_scores_as_its_most_suspicious_tile() -> None:
    normal = _normals()
    fusion = fit_fusion([normal[i : i + 4] for i in range(0, 400, 4)], [])
    tiles = fusion.scores(normal[:4])
    assert fusion.image_scores([normal[:4], normal[4:5]]).tolist() == [
        tiles.max(),
        fusion.scores(normal[4:5])[0],
    ]


def test_a_term_that_never_changes_says_nothing() -> None:
    normal = _normals()
    normal[:, NAMES.index("feature-0/window")] = 0.25
    fusion = fit_fusion(_images(normal), [])
    odd = normal[:1].copy()
    odd[:, NAMES.index("feature-0/window")] = 0.2500001
    assert fusion.scores(odd) == fusion.scores(normal[:1])
    assert np.isfinite(fusion.scores(normal)).all()
