"""What ranks measure of themselves, and the extremes over all of them."""

import re
from pathlib import Path

import pytest
import torch

from cluster.rank_meter import RankMeter, due
from gan.step import NonFiniteError

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that the meters see."""
    now_s = [100.0]
    monkeypatch.setattr("cluster.rank_meter.time.monotonic", lambda: now_s[0])
    return now_s


def test_a_row_is_due_whenever_an_interval_was_reached() -> None:
    reached = [seen for seen in range(16, 400, 16) if due(0.1, seen, 16)]
    assert reached == [112, 208, 304]
    assert due(0.0001, 16, 16), "an interval below one image is one image"


def test_what_a_rank_measures_since_the_last_row(clock: list[float]) -> None:
    meter = RankMeter(CPU, 1, images_seen=1000)
    for wait_s in (0.5, 1.5):
        meter.note(wait_s, {})
    clock[0] += 8
    row = meter.measure(1400)
    assert row.pop("train/memory_gib") > 0.05
    assert row == {
        "train/images_per_s": 50.0,
        "data/wait_s": 2.0,
        "data/wait_share": 0.25,
        "ranks/num_workers": 1.0,
    }
    meter.note(1.0, {})
    clock[0] += 2
    row = meter.measure(1500)
    assert (row["train/images_per_s"], row["data/wait_s"]) == (50.0, 1.0)
    assert row["data/wait_share"] == 0.5


def test_memory_is_the_most_so_far_of_the_process_or_of_tensors_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (most_kib,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    on_cpu = RankMeter(CPU, 1, images_seen=0).measure(1)["train/memory_gib"]
    assert on_cpu == pytest.approx(int(most_kib) / 2**20, rel=0.05)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**30)
    assert RankMeter(torch.device("cuda"), 1, images_seen=0).measure(1)["train/memory_gib"] == 3.0


def test_extremes_over_ranks(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """The other rank waits less and takes more memory."""
    other = torch.tensor([0.1, -0.1, 300.0])

    def all_reduce(values: torch.Tensor, operation: object) -> None:
        assert operation == torch.distributed.ReduceOp.MAX
        values.copy_(torch.maximum(values, other))

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    meter = RankMeter(CPU, 2, images_seen=0)
    meter.note(2.0, {})
    clock[0] += 8
    row = meter.measure(400)
    assert row["train/images_per_s"] == 50.0
    assert row["data/wait_share"] == row["ranks/wait_share_max"] == 0.25
    assert row["ranks/wait_share_min"] == pytest.approx(0.1)
    assert row["ranks/memory_gib_max"] == 300.0
    assert row["ranks/num_workers"] == 2.0


def test_a_statistic_that_is_not_finite_on_one_rank_is_told_on_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda values, _: values.add_(torch.nan))
    meter = RankMeter(CPU, 2, images_seen=0)
    meter.note(0.0, {"loss_d": torch.tensor(1.0)})
    with pytest.raises(NonFiniteError, match="train/loss_d not finite"):
        meter.measure(100)


def test_statistics_are_means_over_steps_and_ranks(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def all_reduce(values: torch.Tensor, operation: object) -> None:
        if operation == torch.distributed.ReduceOp.SUM:
            values += torch.tensor([4.0, 10.0])

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    meter = RankMeter(CPU, 2, images_seen=0)
    steps = ({"loss_d": 1.0, "r1": 5.0}, {"loss_d": 3.0})
    for stats in steps:
        meter.note(0.0, {name: torch.tensor(value) for name, value in stats.items()})
    clock[0] += 1
    row = meter.measure(100)
    assert (row["train/loss_d"], row["train/r1"]) == ((2 + 4) / 2, (5 + 10) / 2)
    assert "train/loss_d" not in meter.measure(200), "a row tells of the steps since the last one"
