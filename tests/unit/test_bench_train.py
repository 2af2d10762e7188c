"""The benchmarks of training: what is given to whom, and that nothing is run twice."""

import json
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from data.importers import mnist as importer
from data.store import Store
from tests.bench.resumable import Row, load_rows
from tests.bench.train import in_memory, mnist
from tests.bench.train.checkpoint import notes
from tests.bench.train.in_memory import endless_rows
from tests.bench.train.mnist import Cell
from tests.bench.train.mnist_images import Parts, cell_images, known_digits, reviewed

CELL = Cell(0, 0.2, "PCA", 0, 0, "contaminating", {})


def _counts(parts: Parts, split: str) -> dict[int, int]:
    digits, counts = np.unique(parts[split][1], return_counts=True)
    return dict(zip(digits.tolist(), counts.tolist(), strict=True))


def test_the_known_kinds_are_the_five_next_digits() -> None:
    assert known_digits(0) == (1, 2, 3, 4, 5)
    assert known_digits(7) == (8, 9, 0, 1, 2)
    assert known_digits(7, "others") == (3, 4, 5, 6)


def test_a_cell_has_the_demos_split_around_its_digit() -> None:
    subset = np.zeros((5000, 28, 28), np.uint8), np.repeat(np.arange(10), 500)
    with patch.object(importer, "_load_digits", return_value=subset):
        parts = cell_images(7, 0.4, 0, 0)
    assert _counts(parts, "train-normal") == {7: 280, 8: 38, 9: 38, 0: 37, 1: 37, 2: 37}
    assert _counts(parts, "train-abnormal") == dict.fromkeys(known_digits(7), 40)
    assert _counts(parts, "test") == {7: 140} | {d: 40 for d in range(10) if d != 7}
    assert parts["test"][0].shape == (500, 32, 32, 1)


def test_what_contaminates_may_be_of_kinds_that_nobody_labelled(whole_mnist: Path) -> None:
    subset = np.zeros((5000, 28, 28), np.uint8), np.repeat(np.arange(10), 500)
    with (
        patch.object(importer, "_load_digits", return_value=subset),
        patch.dict(os.environ, {"BLEMISH_IMAGES": str(whole_mnist)}),
    ):
        drawn = [cell_images(7, 0.2, size, 0, "others") for size in (0, 110)]
    for parts, mixed in zip(drawn, ({7: 280, 8: 14}, {7: 88, 8: 5}), strict=True):
        assert _counts(parts, "train-normal").keys() == {7, 8, 9, 0, 1, 2}
        assert mixed.items() <= _counts(parts, "train-normal").items()
        assert _counts(parts, "train-abnormal") == dict.fromkeys((3, 4, 5, 6), 40)
        assert _counts(parts, "validation") == {7: 80} | dict.fromkeys((3, 4, 5, 6), 20)
        assert _counts(parts, "test") == {7: 140} | {d: 40 for d in range(10) if d != 7}


def test_a_person_looks_at_as_many_suspects_as_there_are_wrong_images() -> None:
    images = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1)
    parts: Parts = {
        "train-normal": (images, np.array([3, 3, 7, 8, 3])),
        "train-abnormal": (images[:1] + 9, np.array([9])),
    }
    after = reviewed(parts, np.array([0.1, 0.9, 0.8, 0.2, 0.3]), 3)
    assert after["train-normal"][0].ravel().tolist() == [0, 1, 3, 4]
    assert after["train-normal"][1].tolist() == [3, 3, 8, 3]
    assert after["train-abnormal"][0].ravel().tolist() == [9, 2]
    assert after["train-abnormal"][1].tolist() == [9, 7]


@pytest.fixture
def whole_mnist(tmp_path: Path) -> Path:
    """IDX files whose images say which row they are, of 200 images a digit."""
    labels = np.tile(np.arange(10, dtype=np.uint8), 200)
    for name, start in (("train", 0), ("t10k", 10_000)):
        number = np.arange(start, start + len(labels), dtype="<u2").view(np.uint8).reshape(-1, 2)
        images = np.zeros((len(labels), 28, 28), np.uint8)
        images[:, 0, :2] = number
        for content, values in (("images-idx3", images), ("labels-idx1", labels)):
            head = struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
            path = tmp_path / "mnist" / f"{name}-{content}-ubyte"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(head + values.tobytes())
    return tmp_path


def test_the_whole_of_mnist_gives_as_many_images_as_asked_and_none_twice(whole_mnist: Path) -> None:
    with patch.dict(os.environ, {"BLEMISH_IMAGES": str(whole_mnist)}):
        parts = cell_images(8, 0.2, 110, 0)
        with pytest.raises(ValueError, match="too few of digit 8"):
            cell_images(8, 0.0, 300, 0)
    assert _counts(parts, "train-normal") == {8: 88, 9: 5, 0: 5, 1: 4, 2: 4, 3: 4}
    assert _counts(parts, "train-abnormal") == dict.fromkeys(known_digits(8), 40)
    assert _counts(parts, "validation") == {8: 80} | dict.fromkeys(known_digits(8), 20)
    assert _counts(parts, "test") == {8: 140} | {d: 40 for d in range(10) if d != 8}
    pixels = {
        split: images[:, 2, 2:4, 0].copy().view("<u2") for split, (images, _) in parts.items()
    }
    everything = np.concatenate(list(pixels.values()))
    assert len(np.unique(everything)) == len(everything)
    assert pixels["test"].min() >= 10_000 > max(pixels["train-normal"].max(), 0)


def test_rows_come_in_whole_passes_of_another_order_each() -> None:
    rows = endless_rows(10, 4, seed=0)
    taken = np.concatenate([next(rows) for _ in range(5)])
    first, second = taken[:10], taken[10:]
    assert sorted(first) == sorted(second) == list(range(10))
    assert list(first) != list(second)


@pytest.mark.parametrize(
    ("model", "contamination", "expected"),
    [
        ("method", 0.2, (0.7, 1.0)),
        ("method", 0.0, (0.85, 1.0)),
        ("AnoGAN", 0.4, (1.0, 0.0)),
    ],
)
def test_weights_follow_the_rule_for_the_method_only(
    model: str, contamination: float, expected: tuple[float, float]
) -> None:
    settings = {"schedule.final_kimg": 6.0, "objective.r1_weight": 0.5}
    config = mnist.config_of(Cell(3, contamination, model, 0, 4, "contaminating", settings))
    assert (config.objective.gamma, config.objective.alpha) == pytest.approx(expected)
    assert (config.run.seed, config.schedule.final_kimg) == (4, 6.0)
    assert config.objective.r1_weight == 0.5
    assert config.networks.resolution == 32


def test_aurocs_tell_seen_from_unseen_kinds() -> None:
    kinds = np.array([0, 0, 1, 6, 6])
    row = mnist.aurocs(np.array([0.1, 0.5, 0.9, 0.0, 0.3]), kinds, 0)
    assert (row["seen"], row["unseen"]) == (1.0, 0.25)
    assert row["all"] == 0.5
    assert row["by_kind"] == {"1": 1.0, "6": 0.25}
    row = mnist.aurocs(np.array([0.1, 0.5, 0.9, 0.0, 0.3]), kinds, 0, "others")
    assert (row["seen"], row["unseen"]) == (0.25, 1.0)


def _fake(cell: Cell) -> Row:
    return asdict(cell) | {"all": 0.5 + cell.digit / 10, "seen": 0.5, "unseen": 0.5}


def test_a_cell_that_has_a_row_is_not_run_again(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    cells = [replace(CELL, digit=digit) for digit in range(3)]
    with ThreadPoolExecutor(1) as pool, patch.object(mnist, "run_cell", _fake):
        assert len(list(mnist.run_missing(cells[:2], store, pool))) == 2
        again = list(mnist.run_missing(cells, store, pool))
        others = list(mnist.run_missing([replace(CELL, settings={"a.b": 1})], store, pool))
    assert [row["digit"] for row in again] == [2]
    assert len(others) == 1
    assert [row["digit"] for row in load_rows(store, mnist.CELLS)] == [0, 1, 2, 0]


def test_means_are_over_the_digits_of_the_same_seed() -> None:
    cells = [replace(CELL, digit=digit) for digit in range(3)]
    rows = [_fake(cell) for cell in [*cells, replace(CELL, seed=1, digit=2)]]
    first, other = mnist.means(rows)
    assert (first["all"], first["lowest"], first["digits"]) == (0.6, 0.5, 3)
    assert (other["seed"], other["all"], other["digits"]) == (1, 0.7, 1)


def test_options_name_what_there_is() -> None:
    options = mnist.parse(["--digits", "0,7", "--models", "SVM,method", "--set", "search.steps=9"])
    cells = mnist.cells_of(options)
    assert {cell.digit for cell in cells} == {0, 7}
    assert [cell.model for cell in cells[:8]] == ["SVM"] * 8
    assert cells[0].settings == {}
    assert cells[-1].settings == {"schedule.final_kimg": 18.0, "search.steps": 9}
    assert (cells[0].version, cells[-1].version) == (0, in_memory.RESULT_VERSION)
    with pytest.raises(SystemExit):
        mnist.parse(["--models", "svm"])


def test_who_reviewed_is_a_part_of_every_model_that_got_these_images() -> None:
    cells = [
        mnist.cells_of(mnist.parse(["--models", "SVM", "--labelled", "reviewed", "--kimg", kimg]))
        for kimg in ("6", "9")
    ]
    assert not any(cell in cells[1] for cell in cells[0])


def test_a_model_is_kept_by_all_that_trained_it() -> None:
    cell = replace(CELL, model="method", settings={"schedule.final_kimg": 6.0})

    def folder(cell: Cell) -> str:
        return mnist.model_folder(cell).uri

    with_default = cell.settings | {"optimizer.discriminator_half_life_kimg": 2.0}
    assert folder(replace(cell, settings=with_default)) == folder(cell)
    assert folder(replace(cell, settings=cell.settings | {"search.steps": 3})) == folder(cell)
    for other in ({"optimizer.discriminator_half_life_kimg": 0.0}, {"objective.gamma": 0.6}):
        assert folder(replace(cell, settings=cell.settings | other)) != folder(cell)
    assert folder(replace(cell, seed=1)) != folder(cell)
    assert folder(replace(cell, version=9)) == folder(cell)
    before = folder(cell)
    with patch.object(in_memory, "VERSION", in_memory.VERSION + 1):
        assert folder(cell) != before


def test_a_note_being_written_is_not_read(tmp_path: Path) -> None:
    whole = json.dumps({"step": 1})
    (tmp_path / "times-0.jsonl").write_text(f'{whole}\n{{"step": ')
    assert notes(tmp_path) == [{"step": 1}]
    assert notes(tmp_path, rank=1) == []
