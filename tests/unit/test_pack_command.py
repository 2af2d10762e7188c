"""The command `pack` as a person types it; small sources, so no Ray is started."""

import base64
import io
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cluster.cli import main, parse
from cluster.config import load_config
from cluster.pack import plan_for, write_dataset
from data.dataset import load_index
from data.sample import encode_png
from data.shards import read_shard
from data.store import Store

SIDE = 16


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Class folders: 40 normal images, 30 scratched ones with masks, one that is cut off."""
    folder = tmp_path / "source"
    rng = np.random.default_rng(0)
    for kind, num in (("good", 40), ("scratch", 30)):
        (folder / kind).mkdir(parents=True)
        for number in range(num):
            image = rng.integers(0, 256, (30, 40, 1), dtype=np.uint8)
            (folder / kind / f"{number}.png").write_bytes(encode_png(image))
    (folder / "masks/scratch").mkdir(parents=True)
    mask = np.zeros((30, 40, 1), np.uint8)
    mask[10:13, 20:28] = 255
    for number in range(30):
        (folder / f"masks/scratch/{number}.png").write_bytes(encode_png(mask))
    broken = folder / "good/broken.png"
    broken.write_bytes((folder / "good/0.png").read_bytes()[:300])
    return folder


def _words(source: Path, dest: Path, **settings: object) -> list[str]:
    given = {"networks__resolution": SIDE, "pack__shard_samples": 8} | settings
    options = [w for k, v in given.items() for w in (f"--{k.replace('__', '.')}", str(v))]
    return ["pack", str(source), str(dest), *options]


def test_command_packs_and_tells_what_it_left_out(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dest = tmp_path / "out"
    assert main(_words(source, dest, data__max_bad_fraction=0.02)) == 0
    shown = capsys.readouterr().out
    assert f"left out: 1 images, see {dest}/quarantine.jsonl" in shown
    (row,) = map(json.loads, (dest / "quarantine.jsonl").read_text().splitlines())
    assert row["source"].endswith("good/broken.png")
    index = json.loads((dest / "dataset.json").read_text())
    assert sum(sum(count.values()) for count in index["labels"].values()) == 70
    assert main(_words(source, dest, data__max_bad_fraction=0.02)) == 0
    assert "already holds these images" in capsys.readouterr().err


def test_one_bad_image_is_too_many_by_default(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(_words(source, tmp_path / "out")) == 2
    told = capsys.readouterr().err
    assert "1 of 71 images cannot be used, allowed is data.max_bad_fraction=0.01" in told
    assert "Traceback" not in told


def test_contamination_of_a_source_is_made_and_recorded(source: Path, tmp_path: Path) -> None:
    (source / "good/broken.png").unlink()
    settings = {
        "pack.source": str(source),
        "data.uri": str(tmp_path / "out"),
        "networks.resolution": SIDE,
        "pack.contamination": 0.1,
    }
    index = write_dataset(load_config(None, settings))
    assert index.contamination == pytest.approx(0.1, abs=0.02)
    kinds = index.kinds["train-normal"]
    assert index.contamination == kinds["scratch"] / sum(kinds.values())
    assert set(index.labels["train-normal"]) == {"normal"}


@pytest.mark.parametrize(("given", "told"), [(None, 0.2), (0.0, 0.0), (0.4, 0.4)])
def test_contamination_of_the_built_in_sets(
    tmp_path: Path, given: float | None, told: float
) -> None:
    settings = {"data.uri": str(tmp_path), "networks.resolution": 4, "pack.contamination": given}
    index = write_dataset(load_config(None, settings | {"pack.shard_samples": 200}))
    kinds = index.kinds["train-normal"]
    assert index.contamination == told
    assert 1 - kinds["good"] / sum(kinds.values()) == pytest.approx(told, abs=0.005)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"pack__mode": "crops"}, "pack.mode='crops': input should be 'whole' or 'tiles'"),
        ({"pack__format": "zip"}, "pack.format='zip'"),
        ({"pack__tile_overlap": 0.9}, "pack.tile_overlap=0.9"),
        ({"pack__channels": 2}, "pack.channels=2"),
        ({"pack__intensity": "row"}, "pack.intensity='row'"),
        ({"pack__contamination": 1}, "pack.contamination=1: input should be less than 1"),
        ({"pack__contamination": 0.9}, "lower it or add images"),
        ({"pack__black_level": 9, "pack__white_level": 9}, "black_level=9 must be below"),
        ({"pack__train_fraction": 0.9, "pack__validation_fraction": 0.2}, "must not exceed 1"),
        ({"pack__num_inliers": 3}, "num_inliers=3 belongs to pack.format=caltech256, not to auto"),
        ({"pack__labelled_fraction": 0.5}, "belongs to pack.format=mvtec, not to auto"),
    ],
)
def test_mistakes_are_told_before_an_image_is_read(
    source: Path,
    tmp_path: Path,
    settings: dict[str, object],
    told: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    dest = tmp_path / "out"
    assert main(_words(source, dest, **settings)) == 2
    shown = capsys.readouterr().err
    assert told in shown
    assert "Traceback" not in shown
    assert not dest.exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [("channels", 3), ("format", "folders"), ("normal_kinds", "[ok]"), ("train_fraction", 0.5)],
)
def test_built_in_sets_refuse_what_they_would_ignore(
    tmp_path: Path, field: str, value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    words = _words(Path("digits"), tmp_path / "out", **{f"pack__{field}": value})
    assert main(words) == 2
    assert f"pack.{field}=" in (told := capsys.readouterr().err)
    assert "pack.source=digits is a built-in set" in told


def test_missing_source_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(_words(tmp_path / "nowhere", tmp_path / "out")) == 2
    assert "nowhere" in capsys.readouterr().err


def test_flag_and_alias_set_their_fields() -> None:
    _, config = parse(["pack", "in", "out", "--preview"])
    assert config.pack.preview
    _, config = parse(["pack", "in", "out"])
    assert not config.pack.preview
    _, config = parse(["doctor", "--data", "somewhere"])
    assert config.data.uri == str(Path.cwd() / "somewhere")
    with pytest.raises(SystemExit):
        parse(["train", "--preview"])


def test_levels_and_overlap_reach_the_plan(source: Path) -> None:
    settings = {"pack.source": str(source), "networks.resolution": SIDE, "pack.mode": "tiles"}
    plan = plan_for(load_config(None, settings))
    assert (plan.settings.mode, plan.settings.tile_overlap) == ("tiles", 4)
    others = [{"pack.white_level": 4095}, {"pack.tile_overlap": 0.5}, {"pack.channels": 3}]
    others += [{"pack.intensity": "image"}, {"pack.intensity": "dataset"}]
    digests = {plan_for(load_config(None, settings | other)).digest for other in others}
    assert len(digests | {plan.digest}) == 6


def test_one_intensity_of_the_data_set_is_packed_recorded_and_previewed(
    source: Path, tmp_path: Path
) -> None:
    (source / "good/broken.png").unlink()
    words = _words(source, tmp_path / "out", pack__intensity="dataset")
    assert main([*words, "--preview"]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["preview.html"]
    html = (tmp_path / "out/preview.html").read_text()
    assert "all pictures by those of the data set" in html
    planned = _pictures(html, "")
    assert main(words) == 0
    index = load_index(Store(str(tmp_path / "out")))
    centre, spread = index.intensity_reference
    assert 100 < centre < 156
    # Values from 0 to 255 alike.
    assert spread == pytest.approx(256 / 12**0.5, rel=0.05)
    packed = [
        sample.image
        for shard in index.shards
        if shard.resolution == SIDE
        for sample in read_shard((tmp_path / "out" / shard.path).read_bytes()).samples
    ]
    assert {np.asarray(each).tobytes() for each in planned} <= {each.tobytes() for each in packed}


def test_levels_turn_16_bits_into_what_the_network_sees(tmp_path: Path) -> None:
    folder = tmp_path / "source/good"
    folder.mkdir(parents=True)
    raw = np.full((SIDE, SIDE), 3000, np.uint16)
    raw[:8] = 1000
    Image.fromarray(raw).save(folder / "a.png")
    settings = {"pack__black_level": 1000, "pack__white_level": 5000}
    words = _words(tmp_path / "source", tmp_path / "out", **settings)
    assert main([*words, "--preview"]) == 0
    (shown,) = _pictures((tmp_path / "out/preview.html").read_text(), "")
    pixels = np.asarray(shown)
    assert (pixels[0, 0], pixels[15, 0]) == (0, 128)


def _pictures(html: str, what: str) -> list[Image.Image]:
    """The pictures with these attributes before `src`; the samples have none."""
    found = re.findall(rf'<img{what} src="data:image/png;base64,([^"]+)"', html)
    return [Image.open(io.BytesIO(base64.b64decode(each))) for each in found]


@pytest.mark.parametrize("mode", ["whole", "tiles"])
def test_preview_shows_each_split_and_label_and_packs_nothing(
    source: Path, tmp_path: Path, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    dest = tmp_path / "out"
    settings = {"pack__mode": mode, "pack__contamination": 0.05}
    assert main([*_words(source, dest, **settings), "--preview"]) == 0
    assert capsys.readouterr().out == f"preview: {dest}/preview.html\n"
    assert [path.name for path in dest.iterdir()] == ["preview.html"]
    html = (dest / "preview.html").read_text()
    assert not re.search(r'(?:src|href)="(?!data:|#)', html), "the page needs other files"
    for split in ("train-normal", "train-abnormal", "validation", "test"):
        assert f'<h2 id="{split}">' in html
    assert "abnormal, called normal" in html
    plan = plan_for(parse(_words(source, dest, **settings))[1])
    shown = set(re.findall(r"<b>(\S+)</b> <span>(?:good|scratch)", html))
    assert shown <= {item.key for unit in plan.units for item in unit.items}
    assert len(shown) >= 4 * 4
    samples = _pictures(html, "")
    assert {picture.size for picture in samples} == {(SIDE, SIDE)}
    outlines = _pictures(html, ' class="outline"')
    assert outlines
    for outline in outlines:
        alpha = np.asarray(outline)[:, :, 3] > 0
        assert 0 < alpha.mean() < 0.2
    assert (len(_pictures(html, ' class="overview"')) > 0) == (mode == "tiles")


def test_preview_shows_the_network_s_pixels_and_what_cannot_be_used(tmp_path: Path) -> None:
    folder = tmp_path / "source/good"
    folder.mkdir(parents=True)
    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 1), dtype=np.uint8)
    (folder / "a.png").write_bytes(encode_png(image))
    (folder / "b&.png").write_bytes(b"no image")
    assert main([*_words(tmp_path / "source", tmp_path / "out"), "--preview"]) == 0
    html = (tmp_path / "out/preview.html").read_text()
    (shown,) = _pictures(html, "")
    np.testing.assert_array_equal(np.asarray(shown), image[:, :, 0])
    assert '<h2 id="unusable">' in html
    assert "b&amp;.png" in html
    assert "No images in: " in html


def test_preview_of_a_packed_set_shows_what_was_packed(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source / "good/broken.png").unlink()
    words = _words(source, tmp_path / "out", pack__mode="tiles")
    assert main(words) == 0
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    for image in source.rglob("*.png"):
        image.write_bytes(b"gone")
    assert main([*words, "--preview"]) == 0
    html = (tmp_path / "out/preview.html").read_text()
    assert "Samples of the packed data set." in html
    assert "tile at x " in html
    assert _pictures(html, ' class="outline"')
    assert {p: p.read_bytes() for p in before} == before


def test_a_data_set_is_not_packed_into_its_source(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source / "good/broken.png").unlink()
    dest = tmp_path / "out"
    assert main(_words(source, dest)) == 0
    before = {path: path.read_bytes() for path in dest.rglob("*") if path.is_file()}
    (tmp_path / "link").symlink_to(dest)
    for target in (dest, tmp_path / "link", dest / "again"):
        assert main(_words(dest, target, run__seed=1)) == 2
        assert "lies in pack.source" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in dest.rglob("*") if path.is_file()}


def test_another_finished_data_set_is_packed_over_on_request_only(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source / "good/broken.png").unlink()
    dest = tmp_path / "out"
    assert main(_words(source, dest)) == 0
    before = {path: path.read_bytes() for path in dest.rglob("*") if path.is_file()}
    other = _words(source, dest, run__seed=1)
    assert main(other) == 2
    told = capsys.readouterr().err
    assert f"{dest} holds another data set, source (70 samples, packed from {source})" in told
    assert "pack.replace=true" in told
    assert before == {path: path.read_bytes() for path in dest.rglob("*") if path.is_file()}
    (dest / "dataset.json").write_bytes(b"{")
    assert main(other) == 2
    assert "one that this version cannot read" in capsys.readouterr().err
    assert main([*other, "--pack.replace", "true"]) == 0
    assert load_index(Store(str(dest))).seed == 1


def test_names_that_are_no_utf8_are_packed(source: Path, tmp_path: Path) -> None:
    folder = os.fsencode(source)
    (source / "good/broken.png").write_bytes(b"")
    os.rename(source / "good/broken.png", folder + b"/good/pr\xfcf.png")
    os.rename(source / "scratch", folder + b"/ri\xdf")
    os.rename(source / "masks/scratch", folder + b"/masks/ri\xdf")
    dest = tmp_path / "out"
    assert main(_words(source, dest, data__max_bad_fraction=0.02)) == 0
    (row,) = map(json.loads, (dest / "quarantine.jsonl").read_text().splitlines())
    assert row["source"].endswith("/good/pr\\udcfcf.png")
    kinds = load_index(Store(str(dest))).kinds["test"]
    assert kinds["ri\\udcdf"]


def test_reasons_that_name_a_file_may_name_one_that_is_no_utf8(
    source: Path, tmp_path: Path
) -> None:
    (source / "good/broken.png").unlink()
    os.symlink(b"nowhere", os.fsencode(source) + b"/good/pr\xfcf.png")
    dest = tmp_path / "out"
    assert main(_words(source, dest, data__max_bad_fraction=0.02)) == 0
    (row,) = map(json.loads, (dest / "quarantine.jsonl").read_text().splitlines())
    assert "/good/pr\\udcfcf.png failed: no such object" in row["reason"]


def test_images_repaired_under_their_names_are_read_anew(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source / "good/broken.png").unlink()
    colour = np.zeros((30, 40, 3), np.uint8)
    (source / "good/7.png").write_bytes(encode_png(colour))
    words = _words(source, tmp_path / "out")
    assert main(words) == 2
    assert "mixed channels" in capsys.readouterr().err
    (source / "good/7.png").write_bytes(encode_png(colour[..., :1]))
    assert main(words) == 0
