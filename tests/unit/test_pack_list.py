"""`pack.abnormal_list`: what a person found among the suspects of an audit is called abnormal."""

from pathlib import Path

import numpy as np
import pytest

from cluster.cli import main
from cluster.config import load_config
from cluster.errors import UserError
from cluster.pack import write_dataset
from data.sample import encode_png
from data.shards import read_shard

SIDE = 16


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Class folders: 40 normal images, 30 scratched ones."""
    rng = np.random.default_rng(0)
    for kind, num in (("good", 40), ("scratch", 30)):
        folder = tmp_path / "source" / kind
        folder.mkdir(parents=True)
        for number in range(num):
            image = rng.integers(0, 256, (SIDE, SIDE, 1), dtype=np.uint8)
            (folder / f"{number}.png").write_bytes(encode_png(image))
    return tmp_path / "source"


def test_images_on_a_list_are_abnormal_whatever_the_source_calls_them(
    source: Path, tmp_path: Path
) -> None:
    settings = {
        "pack.source": str(source),
        "data.uri": str(tmp_path / "out"),
        "networks.resolution": SIDE,
        "pack.contamination": 0.1,
    }
    before = write_dataset(load_config(None, settings))
    samples = [
        sample
        for shard in before.shards_of("train-normal")
        for sample in read_shard((tmp_path / "out" / shard.path).read_bytes(), shard).samples
    ]
    (good, *_), (scratch, *_) = (
        [sample for sample in samples if sample.kind == kind] for kind in ("good", "scratch")
    )
    found = tmp_path / "suspects.csv"
    found.write_text(f"rank,key,source\n1,x,{scratch.source}\n2,y,{good.source}\n")
    corrected = settings | {"pack.abnormal_list": str(found), "data.uri": str(tmp_path / "again")}
    index = write_dataset(load_config(None, corrected))
    for kind in ("good", "scratch"):
        assert index.kinds["train-normal"][kind] == before.kinds["train-normal"][kind] - 1
    known = before.kinds["train-abnormal"] | {"found": 1}
    known["scratch"] += 1
    assert index.kinds["train-abnormal"] == known
    assert index.contamination == index.kinds["train-normal"]["scratch"] / (len(samples) - 2)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "source=surfaces knows its own contamination"),
        ({"pack.source": "lines", "pack.mode": "tiles"}, "give these pictures masks"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused(settings: dict[str, object], told: str) -> None:
    with pytest.raises(UserError, match=told):
        load_config(None, {"pack.abnormal_list": "found.csv"} | settings)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("source\n/elsewhere/1.png\n", "1 of the 1 images found abnormal are not among"),
        ("key\n1\n", "is no CSV file with a column source"),
        ("rank,key,source\n", "names no image"),
        ("", "is no CSV file with a column source"),
        (None, "found.csv"),
    ],
)
def test_a_list_that_fits_nothing_is_told(
    source: Path,
    tmp_path: Path,
    content: str | None,
    told: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = tmp_path / "found.csv"
    if content is not None:
        found.write_text(content)
    words = ["pack", str(source), str(tmp_path / "out"), "--networks.resolution", str(SIDE)]
    assert main([*words, "--pack.abnormal_list", str(found)]) == 2
    shown = capsys.readouterr().err
    assert told in shown
    assert "Traceback" not in shown
    assert not (tmp_path / "out").exists()
