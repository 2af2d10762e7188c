"""Inspection of a plain folder, of a part of the inputs, and the score fused on validation."""

import dataclasses
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cluster import inspection
from cluster.calibration import calibration_for, choosing
from cluster.config import Config
from cluster.engine import Engine
from cluster.errors import UserError
from cluster.inputs import find_inputs
from cluster.inspection import calibrate, inspect_dataset, inspect_split
from cluster.inspection_files import inspection_store, read_failed, read_manifest, read_scores
from cluster.model_store import load_card, load_model, save_card
from data.pack import pack
from data.preparation import Intensity, Preparation
from data.sample import encode_png
from data.store import Store
from data.synthetic import machined_surface
from gan.evidence import LOGIT
from gan.networks import Generator
from gan.starts import Starts
from tests.inspecting import SHARD_SAMPLES, SIDE, calibrated, inspect_here, sample, with_inspect

WHOLE = Preparation(resolution=SIDE, channels=1)
TILES = Preparation(resolution=SIDE, channels=1, mode="tiles", tile_overlap=4)


@pytest.fixture(autouse=True)
def _without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "run_units", inspect_here)


def _folder(place: Path, num_images: int = 7, side: int = SIDE) -> Path:
    place.mkdir()
    for number in range(num_images):
        image, _ = machined_surface(number, side, side, defect=False)
        (place / f"part-{number}.png").write_bytes(encode_png(image))
    (place / "torn.png").write_bytes(b"\x89PNG")
    (place / "notes.txt").write_text("night shift")
    return place


def _plain(config: Config, folder: Path, **changes: Any) -> Config:
    return with_inspect(config, source=str(folder), unit_images=3, **changes)


@pytest.mark.parametrize(("preparation", "tiles"), [(WHOLE, 1), (TILES, 9)], ids=["whole", "tiles"])
def test_every_image_of_a_folder_is_scored_or_failed(
    tmp_path: Path, preparation: Preparation, tiles: int, capsys: pytest.CaptureFixture[str]
) -> None:
    config = _plain(calibrated(tmp_path, preparation), _folder(tmp_path / "in", side=40))
    assert inspect_dataset(config) == 0
    told = capsys.readouterr().out
    assert "7 images scored, 1 inputs failed" in told
    assert "1 files are hidden or no images by their names" in told
    out = inspection_store(config)
    table = read_scores(out)
    assert sorted(table["source"]) == [str(tmp_path / f"in/part-{n}.png") for n in range(7)]
    assert set(table["tiles"]) == {tiles}
    assert set(table["label"]) == {"unlabelled"}
    assert table["decision"].notna().all()
    (failed,) = read_failed(out)
    assert failed["source"].endswith("in/torn.png")
    assert read_manifest(out)["data_uri"] == str(tmp_path / "in")


def test_a_plain_image_scores_as_the_same_image_packed(tmp_path: Path) -> None:
    # Starts that do not depend on the key: it is another one for a plain image.
    config = calibrated(tmp_path, WHOLE, **{"search.candidates": 16})
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(5):
        one = sample("test", 0, number)
        (folder / f"{one.key}.png").write_bytes(encode_png(one.image))
    plain = _plain(config, folder)
    for each in (config, plain):
        inspect_split(each, calibration_for(each))
    packed = read_scores(inspection_store(config)).set_index("source")
    found = read_scores(inspection_store(plain))
    for row in found.to_dict("records"):
        other = packed.loc[Path(row["source"]).name]
        for column in ("score", "logit", "residual"):
            assert row[column] == other[column]


@pytest.mark.parametrize("intensity", ["image", "dataset"])
def test_a_model_prepares_plain_images_in_the_intensity_of_its_data_set(
    tmp_path: Path, intensity: Intensity
) -> None:
    config = calibrated(tmp_path, WHOLE, **{"search.candidates": 16})
    samples = [sample("test", 0, number) for number in range(4)]
    normal = replace(sample("test", 1, 1), split="train-normal")
    store = Store(str(tmp_path / "other"))
    index = pack([*samples, normal], store, name="x", seed=0, resolution=SIDE, intensity=intensity)
    run = Store(config.run.dir)
    save_card(run, load_card(run).model_copy(update={"preparation": index.preparation}))
    (tmp_path / "in").mkdir()
    for one in samples:
        (tmp_path / "in" / f"{one.key}.png").write_bytes(encode_png(one.image))
    packed = config.model_copy(update={"data": config.data.model_copy(update={"uri": store.uri})})
    packed = with_inspect(packed, dir=str(tmp_path / "packed-scores"))
    plain = _plain(config, tmp_path / "in")
    for each in (packed, plain):
        inspect_split(each, calibration_for(each))
    scores = read_scores(inspection_store(packed)).set_index("source")["residual"]
    found = read_scores(inspection_store(plain))
    assert len(found) == len(scores) == 4
    for row in found.to_dict("records"):
        assert row["residual"] == scores[Path(row["source"]).name]
    with pytest.raises(
        UserError, match=rf"intensity=none, .*in .*with {intensity}; .*inspect.source"
    ):
        find_inputs(config, load_card(run))
    darker = index.preparation.model_copy(update={"levels": (0, 4095)})
    save_card(run, load_card(run).model_copy(update={"preparation": darker}))
    with pytest.raises(UserError, match=r"levels=\(0, 65535\), .*with \(0, 4095\); "):
        find_inputs(packed, load_card(run))


def test_a_part_is_inspected_first_and_the_rest_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = calibrated(tmp_path, WHOLE)
    part = with_inspect(config, limit=SHARD_SAMPLES + 1)
    inspect_dataset(part)
    assert "1 units are left" in capsys.readouterr().out
    first = read_scores(inspection_store(part))
    assert len(first) == 2 * SHARD_SAMPLES
    inspect_dataset(config)
    whole = read_scores(inspection_store(config))
    assert len(whole) == 3 * SHARD_SAMPLES
    assert whole[whole["key"].isin(first["key"])].reset_index(drop=True).equals(first)
    assert read_manifest(inspection_store(config))["units_left"] == 0


def test_another_folder_does_not_mix_with_the_first(tmp_path: Path) -> None:
    config = calibrated(tmp_path, WHOLE)
    one, other = (_plain(config, _folder(tmp_path / name)) for name in ("one", "other"))
    inspect_split(one, calibration_for(one))
    with pytest.raises(UserError, match="holds an inspection with another data_uri"):
        inspect_split(other, calibration_for(other))


def test_a_folder_that_holds_other_files_now_is_told_of(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "in")
    config = _plain(calibrated(tmp_path, WHOLE), folder)
    inspect_split(config, calibration_for(config))
    (folder / "part-0.png").rename(folder / "other.png")
    with pytest.raises(UserError, match=r"in holds other files than when the inspection in .* beg"):
        inspect_split(config, calibration_for(config))


def test_results_never_lie_among_the_images(tmp_path: Path) -> None:
    """Their pictures would be images of the next attempt."""
    folder = _folder(tmp_path / "in")
    config = _plain(calibrated(tmp_path, WHOLE), folder, dir=str(folder / "out"))
    with pytest.raises(
        UserError, match=r"inspect\.dir=\S+/in/out lies in inspect\.source=\S+/in; "
    ):
        inspect_split(config, calibration_for(config))
    assert not (folder / "out").exists()
    above = with_inspect(config, source=str(tmp_path), dir="")
    with pytest.raises(UserError, match=r"run\.dir=\S+/run lies in inspect\.source"):
        inspect_dataset(with_inspect(above, dry_run=True))


@pytest.mark.parametrize("preparation", [WHOLE, TILES], ids=["whole", "tiles"])
def test_units_of_another_size_do_not_mix_with_the_first(
    tmp_path: Path, preparation: Preparation
) -> None:
    config = calibrated(tmp_path, preparation)
    part = _plain(config, _folder(tmp_path / "in", side=40), limit=3)
    inspect_split(part, calibration_for(part))
    other = with_inspect(part, limit=0, unit_images=4)
    with pytest.raises(UserError, match="holds an inspection with another unit_images"):
        inspect_split(other, calibration_for(other))
    manifest = inspect_split(with_inspect(part, limit=0), calibration_for(part))
    assert (manifest["images"], manifest["failed"], manifest["units_left"]) == (7, 1, 0)


def test_a_name_that_is_no_utf8_is_scored_as_well(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "in")
    (folder / "part-0.png").rename(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png"))
    config = _plain(calibrated(tmp_path, WHOLE), folder)
    inspect_split(config, calibration_for(config))
    sources = read_scores(inspection_store(config))["source"]
    assert [s for s in sources if s.endswith("/caf\\udce9.png")]
    assert len(sources) == 7


def test_a_model_that_does_not_tell_its_preparation_takes_no_plain_images(tmp_path: Path) -> None:
    config = _plain(calibrated(tmp_path, WHOLE), _folder(tmp_path / "in"))
    run = Store(config.run.dir)
    save_card(run, load_card(run).model_copy(update={"preparation": None}))
    with pytest.raises(UserError, match="does not tell how images are prepared"):
        find_inputs(config, load_card(run))


def test_validation_scores_become_the_fused_ones(tmp_path: Path) -> None:
    config = calibrated(tmp_path, WHOLE)
    calibration = calibration_for(config)
    fusion = calibration.fusion
    assert fusion is not None
    table = read_scores(inspection_store(with_inspect(config, split="validation")))
    terms = np.array([tiles[0].tolist() for tiles in table["terms"]])
    np.testing.assert_allclose(table["score"], fusion.scores(terms))
    np.testing.assert_allclose(-table["logit"], terms[:, fusion.names.index(f"{LOGIT}/mean")])
    normal, chooses = table["label"] == "normal", choosing(config, table)
    assert chooses.any()
    assert calibration.normal_scores == tuple(sorted(table.loc[normal & ~chooses, "score"]))


def test_an_inspection_scores_as_its_calibration_fused(tmp_path: Path) -> None:
    config = calibrated(tmp_path, WHOLE)
    inspect_split(config, calibration_for(config))
    fusion = calibration_for(config).fusion
    assert fusion is not None
    table = read_scores(inspection_store(config))
    terms = np.array([tiles[0].tolist() for tiles in table["terms"]])
    np.testing.assert_allclose(table["score"], fusion.scores(terms))


def test_a_calibration_by_a_version_with_other_terms_is_refused(tmp_path: Path) -> None:
    config = calibrated(tmp_path, WHOLE)
    run = Store(config.run.dir)
    card = load_card(run)
    assert card.calibration
    assert card.calibration.fusion
    old = dataclasses.replace(card.calibration.fusion, names=("residual/mean", LOGIT))
    update = {"calibration": card.calibration.model_copy(update={"fusion": old})}
    save_card(run, card.model_copy(update=update))
    with pytest.raises(UserError, match="by a version with other terms; calibrate first"):
        calibration_for(config)


@pytest.mark.parametrize("statistic", ["mean", "window"])
def test_the_papers_score_and_the_window_stay_selectable(tmp_path: Path, statistic: str) -> None:
    config = calibrated(tmp_path, WHOLE, **{"search.statistic": statistic})
    assert calibration_for(config).fusion is None
    inspect_split(config, calibration_for(config))
    table = read_scores(inspection_store(config))
    weight = config.search.feature_weight
    loss = (1 - weight) * table["residual"] + weight * table["feature"]
    if statistic == "mean":
        np.testing.assert_allclose(table["score"], loss, rtol=1e-6)
    else:
        assert (table["score"] > loss).all()


def test_calibrating_again_searches_no_image_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the scores and the fusion, a calibration is finished from what is there."""
    config = calibrated(tmp_path, WHOLE)
    before = calibration_for(config)
    scores = _validation_scores(config)
    monkeypatch.setattr(inspection, "run_units", lambda *_: pytest.fail("searched again"))
    assert calibrate(config) == before
    pd.testing.assert_frame_equal(_validation_scores(config), scores)


def _validation_scores(config: Config) -> pd.DataFrame:
    return read_scores(inspection_store(with_inspect(config, split="validation")), ["score"])


@pytest.mark.parametrize("feature_weight", [0.1, 1.0])
def test_without_steps_the_generator_rests_and_scores_stay_what_a_search_gives(
    feature_weight: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = {"candidates": 16, "steps": 0, "feature_weight": feature_weight}
    config = calibrated(tmp_path, WHOLE, **{f"search.{name}": it for name, it in search.items()})
    samples = [sample("test", 0, number) for number in range(11)]
    engine = Engine(load_model(Store(config.run.dir)), config.search, seed=0)
    with monkeypatch.context() as patch:
        patch.setattr(Generator, "forward", lambda *_: pytest.fail("G was asked"))
        quick = [scored.row for scored in engine.score(samples)]
        alone = [engine.score([one])[0].row for one in samples]
    assert quick == alone
    monkeypatch.setattr(Starts, "are_ends", False)
    for row, searched in zip(quick, engine.score(samples), strict=True):
        assert row["steps"] == searched.row["steps"] == 0
        for name in ("score", "residual", "feature", "logit", "peak", "terms"):
            np.testing.assert_allclose(row[name], searched.row[name], rtol=1e-4, atol=1e-6)
