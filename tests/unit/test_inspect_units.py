"""Units of an inspection without Ray: pixels beside scores, regions, another rule afterwards."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cluster import inspection, inspection_claim
from cluster.calibration import calibration_for
from cluster.config import Config
from cluster.errors import UserError
from cluster.evaluate import evaluate_run
from cluster.inspection import calibrate, inspect_dataset, inspect_split
from cluster.inspection_files import (
    CLAIM,
    MANIFEST,
    METRICS,
    REGIONS,
    REPORT,
    inspection_store,
    pixels_path,
    read_scores,
    scores_path,
    unit_name,
)
from cluster.pixel_metrics import PixelCounts
from cluster.report import build_report
from data.dataset import load_index
from data.preparation import Preparation
from data.store import Store
from tests.inspecting import (
    SHARD_SAMPLES,
    SIDE,
    calibrated,
    contents,
    inspect_here,
    sample,
    with_inspect,
)

RULES = ["best_f1", "zero_escape", "reject_band"]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A packed data set and a calibrated model; units run in this process."""
    monkeypatch.setattr(inspection, "run_units", inspect_here)
    return calibrated(tmp_path, Preparation(resolution=SIDE, channels=1))


def test_every_unit_has_the_pixels_of_its_masked_images(config: Config) -> None:
    inspect_split(config, calibration_for(config))
    out, whole = inspection_store(config), PixelCounts()
    for shard in load_index(Store(config.data.uri)).shards_of("test"):
        counts = PixelCounts()
        counts.add_bytes(out.read_bytes(pixels_path(unit_name(shard))))
        whole.add_bytes(counts.to_bytes())
        # Eight normal, two of four abnormal ones.
        assert (counts.num_images, counts.num_without_mask) == (10, 2)
    samples = [sample("test", n, i) for n in range(3) for i in range(0, SHARD_SAMPLES, 6)]
    assert whole.abnormal.sum() == sum(sample.mask.sum() for sample in samples)
    assert whole.normal.sum() == 30 * SIDE**2 - whole.abnormal.sum()


def test_scores_come_last_so_that_a_unit_is_whole_or_absent(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    real = Store.write_bytes

    def spy(store: Store, path: str, payload: bytes) -> None:
        written.append(path)
        real(store, path, payload)

    monkeypatch.setattr(Store, "write_bytes", spy)
    inspect_split(config, calibration_for(config))
    for shard in load_index(Store(config.data.uri)).shards_of("test"):
        unit = unit_name(shard)
        assert written.index(pixels_path(unit)) < written.index(scores_path(unit))
    assert written[-2:] == [REGIONS, MANIFEST]


def test_local_contrast_is_part_of_calibration_score_and_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection, "run_units", inspect_here)
    preparation = Preparation(resolution=SIDE, channels=1)
    config = calibrated(tmp_path, preparation, **{"search.local_contrast": 3})
    calibration = calibration_for(config)
    assert calibration.fusion
    assert "local-contrast" in calibration.fusion.map_weights()
    inspect_split(config, calibration)
    terms = [np.array(list(tiles)) for tiles in read_scores(inspection_store(config))["terms"]]
    assert {each.shape for each in terms} == {(1, len(calibration.fusion.names))}
    search = config.search.model_copy(update={"local_contrast": 0})
    with pytest.raises(UserError, match=r"search\.local_contrast=0 is not the 3"):
        calibration_for(config.model_copy(update={"search": search}))


def test_the_logit_lifts_map_and_scale_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection, "run_units", inspect_here)
    preparation = Preparation(resolution=SIDE, channels=1)
    scales, peaks = [], []
    for name, changes in [("without", {}), ("with", {"search.logit_in_map": True})]:
        config = calibrated(tmp_path / name, preparation, **changes)
        calibration = calibration_for(config)
        inspect_split(config, calibration)
        scales.append(calibration.map_scale)
        peaks.append(read_scores(inspection_store(config)).sort_values("key")["peak"].to_numpy())
    assert scales[0] < scales[1]
    assert (peaks[0] < peaks[1]).all()


def test_calibration_writes_no_pixels_and_no_regions(config: Config) -> None:
    out = inspection_store(with_inspect(config, split="validation"))
    assert out.list("pixels/") == []
    assert not out.exists(REGIONS)


@pytest.mark.parametrize("rule", RULES)
def test_another_rule_decides_anew_without_searching(
    config: Config, rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inspect_split(config, calibration_for(config))
    out = inspection_store(config)
    out.write_bytes(METRICS, b"of the old rule")
    before, scored = contents(out, "scores", MANIFEST, CLAIM, METRICS), read_scores(out)
    manifest = json.loads(out.read_bytes(MANIFEST))
    other = with_inspect(config, threshold=rule)
    fresh = with_inspect(other, dir=str(tmp_path / "fresh"))
    inspect_split(fresh, calibration_for(fresh))
    with monkeypatch.context() as patch:
        patch.setattr(inspection, "run_units", lambda *_: pytest.fail("searched again"))
        again = inspect_split(other, calibration_for(other))
    assert contents(out, "scores", MANIFEST, CLAIM) == before
    table = read_scores(out)
    assert table.equals(read_scores(inspection_store(fresh)))
    assert not table["decision"].equals(scored["decision"])
    assert again["calibration"]["rule"] == rule
    assert again["decision"] != manifest["decision"]
    assert again["images_per_s"] == manifest["images_per_s"]


@pytest.mark.parametrize("then", ["false_positive_rate", "zero_escape"])
def test_deciding_anew_that_was_cut_off_is_done_again(
    config: Config, then: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inspect_split(config, calibration_for(config))
    out = inspection_store(config)
    other = with_inspect(config, threshold="zero_escape")
    calls: list[int] = []
    real = inspection_claim.decide

    def stop_in_the_second(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(inspection_claim, "decide", stop_in_the_second)
        with pytest.raises(KeyboardInterrupt):
            inspect_split(other, calibration_for(other))
    with pytest.raises(UserError, match="not a finished inspection"):
        inspection.read_manifest(out)
    last = with_inspect(config, threshold=then)
    inspect_split(last, calibration_for(last))
    decisions = calibration_for(last).chosen.decide(read_scores(out)["score"])
    table = read_scores(out)
    assert list(table["decision"]) == list(decisions)
    assert json.loads(out.read_bytes(MANIFEST))["images"] == len(table) == 36


def test_scores_of_an_older_calibration_never_become_those_of_a_new_one(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = config.search.model_copy(update={"steps": 3})
    config = with_inspect(config.model_copy(update={"search": search}), split="validation")
    with monkeypatch.context() as patch:
        patch.setattr(Store, "delete", _once_then_stop(Store.delete))
        with pytest.raises(KeyboardInterrupt):
            calibrate(config)
    again = calibrate(config)
    other = calibrated(tmp_path / "other", Preparation(resolution=SIDE, channels=1))
    fresh = calibrate(with_inspect(other.model_copy(update={"search": search}), split="validation"))
    assert again.normal_scores == fresh.normal_scores


def test_scores_without_a_claim_are_nobodys(config: Config) -> None:
    inspect_split(config, calibration_for(config))
    inspection_store(config).delete(CLAIM)
    with pytest.raises(UserError, match=r"no job.json that tells what they are of; choose another"):
        inspect_split(config, calibration_for(config))


def _once_then_stop(real: Callable[[Store, str], None]) -> Callable[[Store, str], None]:
    calls: list[str] = []

    def delete(store: Store, path: str) -> None:
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(store, path)

    return delete


def test_other_search_in_the_same_directory_is_still_refused(config: Config) -> None:
    calibration = calibration_for(config)
    inspect_split(config, calibration)
    with pytest.raises(UserError, match="holds an inspection with another calibration"):
        inspect_split(config, calibration.model_copy(update={"map_scale": 1.0}))


def _planned(config: Config, monkeypatch: pytest.MonkeyPatch) -> tuple[str, int]:
    """Split and number of finished units that a dry run speaks of; it must change nothing."""
    told: list[tuple[str, int]] = []
    with monkeypatch.context() as patch:
        patch.setattr(
            inspection, "print_plan", lambda _, what, done: told.append((what.split, len(done)))
        )
        patch.setattr(Store, "write_bytes", lambda *_: pytest.fail("written"))
        patch.setattr(Store, "delete", lambda *_: pytest.fail("deleted"))
        inspect_dataset(with_inspect(config, dry_run=True))
    return told[0]


def test_a_dry_run_counts_what_the_command_would_leave_done(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _planned(config, monkeypatch) == ("test", 0)
    inspect_split(config, calibration_for(config))
    assert _planned(config, monkeypatch) == ("test", 3)
    assert _planned(with_inspect(config, threshold="zero_escape"), monkeypatch) == ("test", 3)
    again = with_inspect(config, split="validation", dir=str(tmp_path / "unused"), limit=1)
    assert _planned(again, monkeypatch) == ("validation", 2)
    other = again.model_copy(update={"search": again.search.model_copy(update={"steps": 3})})
    assert _planned(other, monkeypatch) == ("validation", 0)


def test_a_dry_run_refuses_what_the_command_refuses(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inspect_split(config, calibration_for(config))
    store = Store(str(tmp_path / "in"))
    store.write_bytes("a.png", b"")
    other = with_inspect(config, source=store.uri, dir=inspection_store(config).uri)
    with pytest.raises(UserError, match="holds an inspection with another data_uri"):
        _planned(other, monkeypatch)


def test_what_was_told_of_a_part_is_gone_with_the_whole(config: Config) -> None:
    calibration, out = calibration_for(config), inspection_store(config)
    part = with_inspect(config, limit=SHARD_SAMPLES)
    inspect_split(part, calibration)
    evaluate_run(part)
    build_report(out)
    inspect_split(part, calibration)
    assert out.exists(METRICS), "nothing was inspected"
    inspect_split(config, calibration)
    assert not out.exists(METRICS)
    assert not out.exists(REPORT)


@pytest.mark.parametrize("where", ["in the midst", "before the manifest"])
def test_what_was_told_of_a_part_is_not_taken_for_the_whole_that_was_stopped(
    config: Config, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibration, out = calibration_for(config), inspection_store(config)
    inspect_split(with_inspect(config, limit=SHARD_SAMPLES), calibration)

    def stopped(job: Any, units: list[Any], config: Config) -> list[Any]:
        inspect_here(job, units[:1] if where == "in the midst" else units, config)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(inspection, "run_units", stopped)
        with pytest.raises(KeyboardInterrupt):
            inspect_split(config, calibration)
    for judge in (lambda: evaluate_run(config), lambda: build_report(out)):
        with pytest.raises(UserError, match="not a finished inspection"):
            judge()
    manifest = inspect_split(config, calibration)
    assert (manifest["images"], manifest["units_left"]) == (3 * SHARD_SAMPLES, 0)


def test_a_manifest_of_fewer_units_than_are_finished_is_written_anew(config: Config) -> None:
    calibration, out = calibration_for(config), inspection_store(config)
    inspect_split(with_inspect(config, limit=SHARD_SAMPLES), calibration)
    old = out.read_bytes(MANIFEST)
    inspect_split(config, calibration)
    out.write_bytes(MANIFEST, old)
    assert inspect_split(config, calibration)["images"] == 3 * SHARD_SAMPLES


def test_a_finished_job_is_known_without_reading_its_scores(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    inspect_split(config, calibration_for(config))
    monkeypatch.setattr(inspection, "read_scores", lambda *_: pytest.fail("read"))
    assert inspect_split(config, calibration_for(config))["images"] == 3 * SHARD_SAMPLES


def test_a_folder_that_was_changed_is_told(config: Config) -> None:
    calibration, out = calibration_for(config), inspection_store(config)
    inspect_split(config, calibration)
    one, other, *_ = out.list("scores/")
    whole = out.read_bytes(one)
    out.write_bytes("scores/nobodys.parquet", whole)
    with pytest.raises(UserError, match="holds scores of nobodys, which is not in"):
        inspect_split(config, calibration)
    out.delete("scores/nobodys.parquet")
    out.delete(MANIFEST)
    table = pd.read_parquet(io.BytesIO(out.read_bytes(other)))
    table.iloc[1:].to_parquet(lost := io.BytesIO())
    out.write_bytes(other, lost.getvalue())
    with pytest.raises(UserError, match="only 35 of 36 inputs are in scores/ or failed/"):
        inspect_split(config, calibration)


def test_what_was_told_of_an_older_calibration_is_gone(config: Config) -> None:
    config = with_inspect(config, split="validation")
    out = inspection_store(config)
    for path in (METRICS, REPORT):
        out.write_bytes(path, b"of the old scores")
    calibrate(with_inspect(config, false_positive_rate=0.4))
    assert not out.exists(METRICS)
    assert not out.exists(REPORT)
    assert inspection.read_manifest(out)["images"] == 24


def test_what_it_writes_can_be_judged(config: Config) -> None:
    inspect_split(config, calibration_for(config))
    metrics = evaluate_run(config)
    assert (metrics["num_pixel_images"], metrics["num_without_mask"]) == (30, 6)
    assert 0 <= metrics["aupro"] <= 1
    assert np.isfinite(metrics["intervals"]["pixel_auroc"]).all()
