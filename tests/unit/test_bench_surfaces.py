"""The study on real surfaces: who is trained on what, and how it is judged, on made-up pictures."""

import os
from dataclasses import asdict, replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from tests.bench.surfaces import crops as crops_module
from tests.bench.surfaces import metrics, page, surfaces
from tests.bench.surfaces.cells import Cell, CellData, Surfaces
from tests.bench.surfaces.choice import best_by_auroc
from tests.bench.surfaces.crops import (
    GOOD,
    KINDS,
    Picture,
    cut_pictures,
    halved,
    picture_of,
    splits_of,
)
from tests.bench.surfaces.memory import _nearest, coreset
from tests.bench.surfaces.metrics import ALL, LEVELS, MEAN, aurocs, judged, measure, pixel_levels
from tests.bench.surfaces.pca import PcaDetector
from tests.bench.surfaces.stored import Stored
from tests.bench.surfaces.summary import by_kind, summary
from tests.bench.surfaces.surfaces import cells_of, parse, score_all

CELL = Cell("PCA", 0.1, "seen", 0, "image", {})


def _picture(number: int, kind: str, split: str, height: int = 100, width: int = 80) -> Picture:
    rng = np.random.default_rng(number)
    pixels = rng.integers(100, 120, (2 * height, 2 * width)).astype(np.uint8)
    mask = np.zeros(pixels.shape, bool)
    if kind != GOOD:
        mask[56:64, 56:64] = True
        pixels[mask] = 255
    name = f"{kind}/{number}.jpg"
    return picture_of(name, kind, f"part-{number // 2}", split, pixels, mask, "image")


@pytest.fixture(autouse=True)
def _few_replicates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "NUM_REPLICATES", 100)


@pytest.fixture(scope="module")
def study() -> Surfaces:
    """Two pictures a part; 48 good and 8 defective ones of each kind in training."""
    kinds = [*[GOOD] * 48, *(kind for kind in KINDS for _ in range(8))]
    pictures, splits = [], ["train"] * len(kinds)
    for split in ("validation", "test"):
        kinds += [*[GOOD] * 4, *(kind for kind in KINDS for _ in range(4))]
        splits += [split] * 20
    for number, (kind, split) in enumerate(zip(kinds, splits, strict=True)):
        pictures.append(_picture(number, kind, split))
    return Surfaces(pictures)


def test_parts_of_each_kind_are_split_and_the_rarest_kind_decides() -> None:
    kinds = {f"good-{i}": {"good"} for i in range(50)} | {f"b-{i}": {"break"} for i in range(20)}
    kinds |= {f"f-{i}": {"fray", "good"} for i in range(8)}
    splits = splits_of(kinds)
    counts = {
        first: [sum(splits[p] == s for p in kinds if p[0] == first) for s in crops_module._ENDS]
        for first in "gbf"
    }
    assert counts == {"g": [30, 6, 14], "b": [12, 2, 6], "f": [5, 1, 2]}
    shuffled = dict(reversed(list(kinds.items())))
    assert splits_of(shuffled) == splits


def test_halving_averages_pixels_and_keeps_every_defect_pixel() -> None:
    pixels = np.array([[0, 100, 50], [100, 200, 50], [8, 8, 9]], np.uint8)
    mask = np.zeros((3, 3), bool)
    mask[2, 2] = True
    small, small_mask = halved(pixels, mask)
    assert small.tolist() == [[100, 50], [8, 9]]
    assert small_mask.tolist() == [[False, False], [False, True]]


def test_a_standardised_picture_does_not_tell_brightness_or_contrast() -> None:
    pixels = np.random.default_rng(0).integers(0, 100, (200, 160)).astype(np.uint8)
    pixels = pixels.repeat(2, axis=0).repeat(2, axis=1)
    mask = np.zeros(pixels.shape, bool)
    plain, other = (
        picture_of("a", GOOD, "7", "test", each, mask, "image") for each in (pixels, pixels * 2 + 9)
    )
    assert float(plain.pixels.std()) == pytest.approx(32, abs=0.5)
    np.testing.assert_array_equal(plain.pixels, other.pixels)
    raw = picture_of("a", GOOD, "7", "test", pixels, mask, "none")
    np.testing.assert_array_equal(raw.pixels, pixels[::2, ::2])


def test_crops_cover_a_picture_and_a_small_one_is_reflected() -> None:
    pictures = [_picture(0, "crack", "train", 100, 80), _picture(1, GOOD, "train", 50, 70)]
    found = cut_pictures(pictures)
    places = list(zip(found.picture.tolist(), found.y.tolist(), found.x.tolist(), strict=True))
    assert places == [(0, y, x) for y in (0, 32, 36) for x in (0, 16)] + [(1, 0, 0), (1, 0, 6)]
    np.testing.assert_array_equal(found.pixels[5], pictures[0].pixels[36:, 16:])
    np.testing.assert_array_equal(pictures[1].pixels[50:], pictures[1].pixels[35:49][::-1])
    assert found.num_defect_pixels.tolist() == [16, 16, 0, 0, 0, 0, 0, 0]
    assert (pictures[1].height, pictures[1].width) == (50, 70)


def test_a_folder_of_tiles_is_read_with_its_masks(tmp_path: Path) -> None:
    lines = ["image,class,exposure,part,defect_pixels"]
    for kind, suffix in (("images/fray", "jpg"), ("masks/fray", "png"), ("images/good", "jpg")):
        path = tmp_path / "magnetic_tile" / kind / f"a.{suffix}"
        path.parent.mkdir(parents=True)
        Image.fromarray(np.full((140, 130), 255 * (suffix == "png"), np.uint8)).save(path)
    lines += ["fray/a.jpg,fray,1,7,9", "good/a.jpg,good,1,8,0", "uneven/a.jpg,uneven,1,9,0"]
    (tmp_path / "magnetic_tile/tiles.csv").write_text("\n".join(lines))
    with patch.dict(os.environ, {"BLEMISH_IMAGES": str(tmp_path)}):
        fray, good = crops_module.load_pictures()
    assert (fray.kind, fray.part, fray.mask.all(), good.mask.any()) == ("fray", "7", True, False)
    with patch.dict(os.environ, {"BLEMISH_IMAGES": ""}), pytest.raises(SystemExit, match="BLEMISH"):
        crops_module.load_pictures()


def _parts(study: Surfaces, data: CellData) -> dict[str, set[str]]:
    contaminants = data.normal.take(data.is_contaminant)
    sets = {"contaminants": contaminants, "known": data.known, "validation": data.validation}
    return {name: set(study.parts[each.picture]) for name, each in sets.items()}


@pytest.mark.parametrize("contamination", [0.0, 0.05, 0.2])
def test_contaminants_have_their_share_and_come_from_other_parts_than_the_known(
    study: Surfaces, contamination: float
) -> None:
    data = study.data(replace(CELL, contamination=contamination))
    assert data.is_contaminant.mean() == pytest.approx(contamination, abs=0.002)
    assert set(study.kinds_of(data.normal.take(~data.is_contaminant))) == {GOOD}
    contaminants = data.normal.take(data.is_contaminant)
    assert (contaminants.num_defect_pixels >= 8).all()
    places = {*zip(contaminants.picture, contaminants.y, contaminants.x, strict=True)}
    assert len(places) == len(contaminants)
    parts = _parts(study, data)
    assert not parts["contaminants"] & parts["known"]
    assert len(data.known) == 32
    other = study.data(replace(CELL, contamination=contamination, seed=1))
    assert _parts(study, other)["known"] != parts["known"]


def test_an_unseen_kind_is_only_in_the_contamination_and_the_test(study: Surfaces) -> None:
    data = study.data(replace(CELL, setting="unseen:fray"))
    assert "fray" not in {*study.kinds_of(data.known), *data.validation_kinds}
    assert set(study.kinds_of(data.known)) == {"blowhole", "break", "crack"}
    assert "fray" in study.kinds_of(data.normal.take(data.is_contaminant))
    assert set(study.kinds_of(data.test)) == {GOOD, "fray"}
    seen = study.data(CELL)
    np.testing.assert_array_equal(seen.normal.pixels, data.normal.pixels)
    assert set(study.kinds_of(seen.test)) == {GOOD, *KINDS}


def test_crops_with_few_defect_pixels_are_tested_only_as_parts_of_pictures(study: Surfaces) -> None:
    data = study.data(CELL)
    marked = data.validation.num_defect_pixels
    assert (marked[data.validation_abnormal] >= 8).all()
    assert len(data.test) == 20 * 6
    assert len(data.validation) == 4 * 6 + 32


def test_aurocs_are_those_of_scikit_learn_and_vary_by_part() -> None:
    rng = np.random.default_rng(0)
    kinds = np.array([GOOD] * 60 + ["break"] * 20 + ["fray"] * 10)
    scores = np.round(rng.normal(kinds != GOOD, 1.0), 1)
    parts = np.array([f"{kind}{i % 5}" for i, kind in enumerate(kinds)])
    found = aurocs(scores, kinds, parts)
    for name, chosen in ((ALL, kinds != GOOD), ("break", kinds == "break")):
        used = chosen | (kinds == GOOD)
        expected = roc_auc_score(chosen[used], scores[used])
        assert found[name][0] == pytest.approx(expected, abs=1e-4)
    assert found[MEAN][0] == pytest.approx((found["break"][0] + found["fray"][0]) / 2, abs=1e-4)
    assert found[ALL][1] < found[ALL][0] < found[ALL][2]
    # Twice the crops of the same parts say no more.
    twice = [np.concatenate([each, each]) for each in (scores, kinds, parts)]
    assert aurocs(*twice) == found


def test_a_detector_that_knows_the_masks_is_perfect_in_everything(study: Surfaces) -> None:
    crops = study.data(CELL).test
    maps = crops.masks + np.linspace(0, 0.5, len(crops), dtype=np.float32)[:, None, None]
    scores = crops.num_defect_pixels + np.linspace(0, 0.5, len(crops))
    found = measure(study.pictures, crops, scores, maps)
    assert {level: each[MEAN][0] for level, each in found.items()} == {
        "crop": 1.0,
        "image": 1.0,
        "image_map": 1.0,
        "pixel_auroc": 1.0,
        "aupro": 1.0,
    }
    assert {*found["crop"]} == {ALL, MEAN, *KINDS}
    backwards = measure(study.pictures, crops, -scores, -maps)
    assert backwards["crop"][ALL][0] == 0.0
    assert backwards["pixel_auroc"][ALL][0] == pytest.approx(0.0, abs=1e-3)


def test_pixel_areas_do_not_depend_on_the_scale_of_maps(study: Surfaces) -> None:
    crops = study.data(CELL).test
    rng = np.random.default_rng(0)
    maps = (0.5 * crops.masks + rng.normal(0, 1, crops.masks.shape)).astype(np.float32)
    whole = judged(study.pictures, crops, np.zeros(len(crops)), maps)
    moved = replace(whole, maps=[100 + 0.01 * each.astype(np.float64) for each in whole.maps])
    found, other = pixel_levels(whole), pixel_levels(moved)
    masks = [one.mask[: one.height, : one.width].ravel() for one in whole.pictures]
    flat = np.concatenate([each.ravel() for each in whole.maps])
    exact = roc_auc_score(np.concatenate(masks), flat)
    for each in (found, other):
        assert each["pixel_auroc"][ALL][0] == pytest.approx(exact, abs=1e-3)
        assert each["aupro"][MEAN][0] == pytest.approx(found["aupro"][MEAN][0], abs=1e-3)


def test_pca_finds_bright_squares_that_it_was_not_trained_on(study: Surfaces) -> None:
    data = study.data(replace(CELL, contamination=0.0))
    detector = PcaDetector(CELL)
    detector.fit(data)
    scores, maps = score_all(detector, data.test)
    assert maps.shape == data.test.pixels.shape
    found = measure(study.pictures, data.test, scores, maps)
    assert found["crop"][ALL][0] == found["image"][ALL][0] == 1.0
    assert found["pixel_auroc"][ALL][0] > 0.95
    assert set(detector.told["validation"]) >= {"4", "256"}


def test_options_name_what_there_is() -> None:
    options = parse(
        ["--rows", "PCA,method", "--settings", "unseen:fray", "--set", "search.steps=9"]
    )
    cells = cells_of(options)
    assert [cell.seed for cell in cells] == [0] * 8 + [1] * 8 + [2] * 8
    assert (cells[0].settings, cells[4].settings) == ({}, {"search.steps": 9})
    assert cells[0].hidden == "fray"
    with pytest.raises(SystemExit):
        parse(["--settings", "unseen:uneven"])


def test_what_is_stored_is_not_computed_again_and_survives_a_cut(tmp_path: Path) -> None:
    asked = []

    def compute(pixels: np.ndarray) -> np.ndarray:
        asked.append(len(pixels))
        return pixels.reshape(len(pixels), -1)[:, :3].astype(np.float32)

    pixels = np.random.default_rng(0).integers(0, 255, (6, 8, 8)).astype(np.uint8)
    first = Stored(tmp_path / "numbers", (3,), np.float32, compute, chunk=4)
    np.testing.assert_array_equal(first(pixels[[0, 1, 0]]), pixels[[0, 1, 0], 0, :3])
    again = Stored(tmp_path / "numbers", (3,), np.float32, compute, chunk=4)
    np.testing.assert_array_equal(again(pixels[::-1]), pixels[::-1, 0, :3])
    np.testing.assert_array_equal(again(pixels, slice(2, None)), pixels[:, 0, 2:3])
    assert asked == [2, 4]
    rows = tmp_path / "numbers.rows"
    with rows.open("ab") as file:
        file.write(b"half a r")
    more = pixels + np.uint8(1)
    np.testing.assert_array_equal(again(more), more[:, 0, :3])
    np.testing.assert_array_equal(again(pixels), pixels[:, 0, :3])


def test_a_coreset_reaches_what_is_rare_and_distances_are_to_the_nearest() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(200, 5, generator=generator)
    points[77] += 50
    kept = points[coreset(points, 20, seed=0)]
    assert (kept == points[77]).all(dim=1).any()
    assert len(kept.unique(dim=0)) == 20
    queries = torch.randn(30, 5, generator=generator)
    expected = torch.cdist(queries, kept).amin(dim=1)
    np.testing.assert_allclose(_nearest(queries, kept), expected, rtol=1e-4, atol=1e-4)


def test_the_best_choice_is_the_one_validation_prefers() -> None:
    told: dict[str, object] = {}
    scores = {1: [0.0, 1.0, 0.5], 2: [0.0, 0.5, 1.0], 3: [0.0, 0.2, 0.9]}
    abnormal = np.array([False, False, True])
    assert best_by_auroc(scores, lambda c: np.array(scores[c]), abnormal, told) == 2
    assert told == {"chosen": 2, "validation": {"1": 0.5, "2": 1.0, "3": 1.0}}


def test_a_summary_means_over_seeds_and_over_unseen_kinds() -> None:
    def row(setting: str, seed: int, value: float) -> dict[str, object]:
        kinds = KINDS if setting == "seen" else [setting.partition(":")[2]]
        level = {name: [value, value - 0.1, value + 0.1] for name in (ALL, MEAN, *kinds)}
        return asdict(replace(CELL, setting=setting, seed=seed)) | dict.fromkeys(LEVELS, level)

    rows = [row("seen", 0, 0.5), row("seen", 1, 0.7)]
    rows += [row(f"unseen:{kind}", 0, 0.2 * i) for i, kind in enumerate(KINDS)]
    lines = summary(rows)
    assert [(line["kinds"], line["cells"], line["crop"]) for line in lines] == [
        ("seen, together", 2, 0.6),
        ("seen, mean", 2, 0.6),
        ("unseen, mean", 4, 0.3),
    ]
    seen, *_ = by_kind(rows)
    assert (seen["level"], seen["fray"]) == ("crop", [0.6, 0.5, 0.7])
    unseen = next(each for each in by_kind(rows) if each["kinds"] == "unseen")
    assert unseen["fray"] == [0.6, 0.5, 0.7]


def test_a_page_shows_each_kind_with_its_truth(study: Surfaces, tmp_path: Path) -> None:
    crops = study.data(CELL).test
    found = judged(study.pictures, crops, crops.num_defect_pixels * 1.0, crops.masks * 1.0)
    with patch.object(surfaces, "OUTPUTS", tmp_path):
        surfaces.keep(CELL, found)
        row = page.shown(CELL)
    html = page.render(CELL, [row], study.pictures)
    assert "good: highest scores" in html
    assert html.count('alt="map"') == 4 * (2 + 2) + 2
    assert "http" not in html
    assert {row.share[one.name] for one in found.pictures if one.kind == "fray"} == {1.0}
    mask = np.zeros((9, 9), bool)
    mask[4, 4] = True
    line = (page.outlined(np.zeros((9, 9, 3), np.uint8), mask) > 0).any(axis=2)
    assert line.any()
    assert not line[mask].any()
