"""The progress line: what it says, and that time left is right after a resume."""

import io

import pytest
from tqdm import tqdm

from cluster.progress import ProgressBoard, show, summary

ROW = {
    "train/resolution": 16.0,
    "train/fade": 0.25,
    "train/loss_d": 1.314,
    "train/logit_real": 0.426,
    "train/logit_fake": -0.371,
}


class Clock:
    """Time that passes when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        monkeypatch.setattr("cluster.progress.time.time", lambda: self.now_s)

    def bar(self, total: int) -> "tqdm[None]":
        bar: tqdm[None] = tqdm(total=total, file=io.StringIO(), mininterval=0, ncols=160)
        bar._time = lambda: self.now_s
        bar.start_t = bar.last_print_t = self.now_s
        return bar


def test_line_says_what_is_trained_and_how_it_goes() -> None:
    assert summary(ROW, {}) == ("train 16px fade 0.25", "loss_d 1.31 D(real) +0.43 D(fake) -0.37")
    quality = {"swd": 41.3, "swd_16": 41.3, "validation_auroc": 0.9314}
    assert summary(ROW, quality)[1].endswith("D(fake) -0.37 swd 41 auroc 0.931")


def test_speed_and_time_left_count_only_what_was_done_since_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    bar = clock.bar(10_000)
    show(bar, 0, None, ("", ""))
    # Workers take their time to start, then go on at 9,000.
    clock.now_s += 30
    show(bar, 9_000, 9_000, ("", ""))
    for done in (9_010, 9_020, 9_030):
        clock.now_s += 1
        show(bar, done, None, summary(ROW, {}))
    assert bar.n == 9_030
    assert bar.format_dict["rate"] == pytest.approx(10)
    line = str(bar)
    assert "90%" in line
    assert "01:37" in line, "970 images at 10 a second are left"
    assert line.startswith("train 16px fade 0.25: ")
    assert "\n" not in line
    assert line.endswith("loss_d 1.31 D(real) +0.43 D(fake) -0.37]")


def test_before_the_first_step_no_speed_is_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    bar = clock.bar(10_000)
    clock.now_s += 5
    show(bar, 9_000, 9_000, ("", ""))
    assert "90%" in str(bar)
    assert "?it/s" in str(bar)


def test_failure_sets_the_bar_back_to_the_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    bar = clock.bar(1_000)
    show(bar, 0, 0, ("", ""))
    for done, start in ((100, None), (200, None), (120, 120), (220, None)):
        clock.now_s += 10
        show(bar, done, start, ("", ""))
    assert bar.n == 220
    assert bar.format_dict["rate"] == pytest.approx(10)


def test_board_tells_of_a_start_and_of_notes_once() -> None:
    board = ProgressBoard()
    assert board.read() == (0, None, ("", ""), [])
    board.start(400)
    board.note("worker 1 failed")
    assert board.read() == (400, 400, ("", ""), ["worker 1 failed"])
    board.update(480, "train", "loss_d 1")
    assert board.read() == (480, None, ("train", "loss_d 1"), [])
