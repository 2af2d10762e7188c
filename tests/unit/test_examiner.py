"""Images one by one: as a batch job would have judged them, whoever comes with them."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cluster.assembly import Scored, assemble_images
from cluster.config import Config
from cluster.engine import Engine
from cluster.errors import UserError
from cluster.examiner import Examiner, Picture, Verdict
from cluster.inspector import find_regions
from cluster.model_store import Model, load_model, save_card
from data.errors import DataError
from data.plain import plain_units, read_plain
from data.preparation import Mode
from data.sample import Sample, encode_png
from data.store import Store
from data.synthetic import machined_surface
from tests.image_files import png16
from tests.tiny_model import NATIVE, SIDE, calibrated_model, image_file, model_config


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return model_config(str(tmp_path / "run"))


def _examiner(config: Config, mode: Mode = "whole", **more: int) -> Examiner:
    model = calibrated_model(config, mode)
    assert model.card.calibration
    return Examiner(model, model.card.calibration, **more)


def _verdict(examiner: Examiner, *pictures: Picture) -> Verdict:
    answer = examiner.examine(pictures)[0]
    assert isinstance(answer, Verdict)
    return answer


@pytest.mark.parametrize("mode", ["whole", "tiles"])
def test_the_verdict_is_the_row_of_a_batch_job(config: Config, mode: Mode, tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(image_file(number))
    examiner, model = _examiner(config, mode), load_model(Store(config.run.dir))
    calibration, preparation = model.card.calibration, model.card.preparation
    assert calibration
    assert preparation
    (unit,), _ = plain_units(Store(str(tmp_path)), preparation, unit_images=10)
    samples = read_plain(unit, preparation).samples
    scored = Engine(model, config.search, seed=config.run.seed).score(samples)
    images, _ = assemble_images(scored, preparation.tile_overlap)
    assert len(images) == 3
    for image in images:
        payload = (tmp_path / f"{image.row['key']}.png").read_bytes()
        verdict = _verdict(examiner, Picture(payload, image.row["key"], with_map=True))
        for name in ("score", "residual", "feature", "logit", "height", "width", "tiles"):
            assert getattr(verdict, name) == image.row[name], name
        level = image.map / calibration.map_scale
        assert [region.model_dump() for region in verdict.regions] == find_regions(level)
        assert verdict.model == model.card.weights_sha256
        assert verdict.map
        with Image.open(io.BytesIO(base64.b64decode(verdict.map))) as opened:
            assert np.abs(np.asarray(opened) / 65535 - level.clip(0, 1)).max() < 1 / 65535
    assert verdict.tiles == (9 if mode == "tiles" else 1)


def test_each_verdict_depends_on_its_image_alone(config: Config) -> None:
    """Also where one image comes twice, in tiles, beside one that is none."""
    examiner = _examiner(config, "tiles")
    a, b, bad = Picture(image_file(0), "a"), Picture(image_file(1), "b"), Picture(b"GIF89a", "c")
    alone = [_verdict(examiner, picture) for picture in (a, b)]
    together = examiner.examine([bad, a, a, b, bad])
    assert together[1:4] == [alone[0], alone[0], alone[1]]
    assert all(isinstance(answer, DataError) for answer in (together[0], together[4]))
    assert alone[0].score != alone[1].score


def test_memory_does_not_grow_with_the_number_of_pictures(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each picture has nine tiles of 256 pixels: two fit into 5,000, one into 2,000."""
    parts: list[int] = []
    real = Engine.score

    def watched(engine: Engine, samples: list[Sample]) -> list[Scored]:
        parts.append(len(samples))
        return real(engine, samples)

    monkeypatch.setattr(Engine, "score", watched)
    pictures = [Picture(image_file(n), str(n)) for n in range(5)]
    pictures.insert(1, Picture(b"GIF89a", "bad"))
    answers = [_examiner(config, "tiles", max_pixels=n).examine(pictures) for n in (5000, 2000)]
    assert [n for n in parts if n] == [18, 18, 9, 9, 9, 9, 9, 9]
    assert isinstance(answers[0][1], DataError)
    del answers[0][1], answers[1][1]
    assert answers[0] == answers[1]


def test_a_low_logit_is_said_to_be_abnormal(config: Config) -> None:
    """As the objective has it: D's logit is high where an image looks like the normal ones."""
    told = Verdict.model_json_schema()["properties"]["logit"]["description"]
    assert "lower is more abnormal" in told
    model, picture = calibrated_model(config), Picture(image_file(0), "one")
    assert model.card.calibration
    before = _verdict(Examiner(model, model.card.calibration), picture).logit
    with torch.no_grad():
        model.discriminator.logit.bias -= 1  # D calls every image less real.
    after = _verdict(Examiner(model, model.card.calibration), picture).logit
    assert after == pytest.approx(before - 1, abs=1e-4)


def test_the_key_decides_where_the_search_starts(config: Config) -> None:
    examiner = _examiner(config)
    a, again, b = (_verdict(examiner, Picture(image_file(0), key)).score for key in "aab")
    assert a == again
    assert a != b


def test_decision_and_p_value_follow_from_the_score(config: Config) -> None:
    examiner = _examiner(config)
    calibration = load_model(Store(config.run.dir)).card.calibration
    assert calibration
    verdict = _verdict(examiner, Picture(image_file(0), "a"))
    higher = sum(score >= verdict.score for score in calibration.normal_scores)
    assert verdict.p_value == pytest.approx((higher + 1) / (len(calibration.normal_scores) + 1))
    abnormal = verdict.score > calibration.chosen.high
    assert verdict.decision == ("abnormal" if abnormal else "normal")


def test_no_image_at_all_is_no_error(config: Config) -> None:
    examiner = _examiner(config)
    assert examiner.examine([]) == []
    (answer,) = examiner.examine([Picture(b"", "a")])
    assert str(answer) == "the file is empty"


def test_sixteen_bits_are_scored_as_eight(config: Config) -> None:
    examiner = _examiner(config)
    pixels = machined_surface(0, SIDE, SIDE, defect=False)[0]
    wide = png16(pixels.astype(np.uint16) * 257, 0)
    assert _verdict(examiner, Picture(wide, "a")) == _verdict(
        examiner, Picture(encode_png(pixels), "a")
    )


@pytest.mark.parametrize(
    ("payload", "told"),
    [
        (b"GIF89a", "not a PNG, JPEG, TIFF, BMP or WebP file"),
        (image_file(0)[:200], "this PNG is cut off"),
        (image_file(0, SIDE - 1), "smaller than a tile"),
        (image_file(0, NATIVE + 1), "allowed are 1600 pixels"),
    ],
)
def test_what_cannot_be_used_is_told_in_one_line(config: Config, payload: bytes, told: str) -> None:
    (answer,) = _examiner(config, "tiles", max_pixels=NATIVE**2).examine([Picture(payload, "a")])
    assert isinstance(answer, DataError)
    assert told in str(answer)
    assert "\n" not in str(answer)


def test_a_model_that_cannot_decide_is_refused(config: Config) -> None:
    model = calibrated_model(config, "whole")
    run = Store(config.run.dir)
    assert Examiner.load(run).examine([]) == []
    save_card(run, model.card.model_copy(update={"calibration": None}))
    with pytest.raises(UserError, match="is not calibrated"):
        Examiner.load(run)
    older = Model(
        model.card.model_copy(update={"preparation": None}), model.generator, model.discriminator
    )
    assert model.card.calibration
    with pytest.raises(UserError, match="train again"):
        Examiner(older, model.card.calibration)
