"""`python -m cluster pack` on Ray: the same bytes whatever the workers, and whoever dies."""

import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from cluster.errors import UserError
from cluster.pack import pack_on_ray
from cluster.ray_session import ray_session
from data.item import Item, Picture
from data.pack import pack_unit
from data.pack_finish import finish
from data.pack_records import open_plan
from data.plan import PackSettings, Plan, make_plan
from data.sample import Split
from data.store import Store
from tests.jobs import ROOT, TINY, flags, kill_tree, run_cli

SPLITS: tuple[Split, ...] = ("train-normal", "train-abnormal", "validation", "test")
ON_RAY = "import cluster.pack as p, cluster.cli as c; p.RAY_PAYS_S = -1; raise SystemExit(c.main())"


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def _read(number: int, deadly: str) -> Picture:
    if number == 5 and deadly and not Path(deadly).exists():
        if Path(deadly).parent.exists():
            Path(deadly).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    rng = np.random.default_rng(number)
    return rng.integers(0, 256, (20, 26, 1), dtype=np.uint8), None


def _plan(deadly: str = "") -> Plan:
    items = [
        Item(
            key=f"i{n}",
            read=partial(_read, n, deadly),
            label="abnormal" if SPLITS[n % 4] == "train-abnormal" else "normal",
            kind="k",
            group=f"g{n}",
            source=f"i{n}",
            split=SPLITS[n % 4],
        )
        for n in range(48)
    ]
    settings = PackSettings(name="n", resolution=16, seed=0, mode="tiles", shard_samples=4)
    return make_plan(items, settings)


def test_workers_and_their_deaths_change_no_byte(tmp_path: Path) -> None:
    """One worker, two workers, two of which one is killed, and this process."""
    here = Store(str(tmp_path / "here"))
    plan = _plan()
    open_plan(here, plan)
    for unit in plan.units:
        pack_unit(unit, here, plan.settings, plan.digest)
    finish(here, plan, max_bad_fraction=0)
    expected = _contents(tmp_path / "here")
    deadly = tmp_path / "deadly"
    runs = {"one": (plan, 2.0), "two": (plan, 1.0), "deaths": (_plan(str(deadly)), 1.0)}
    with ray_session(2):
        for name, (each, cpus) in runs.items():
            store = Store(str(tmp_path / name))
            open_plan(store, each)
            records = list(pack_on_ray(each, store, list(each.units), cpus))
            assert {record.name for record in records} == {unit.name for unit in plan.units}
            finish(store, each, max_bad_fraction=0)
    assert deadly.exists()
    assert _contents(tmp_path / "one") == expected
    assert _contents(tmp_path / "two") == expected
    # Its plan names the reader's other argument.
    same = expected.keys() - {"plan.json"}
    assert {k: v for k, v in _contents(tmp_path / "deaths").items() if k in same} == {
        name: expected[name] for name in same
    }


def test_an_image_that_kills_its_workers_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.pack._MAX_RETRIES", 0)
    # Where no file can be left behind it happens each time.
    plan = _plan(str(tmp_path / "none/deadly"))
    store = Store(str(tmp_path / "out"))
    open_plan(store, plan)
    (unit,) = [unit for unit in plan.units if "i5" in {item.key for item in unit.items}]
    with pytest.raises(UserError) as told:
        list(pack_on_ray(plan, store, [unit]))
    assert f"packed {unit.items[0].source} to {unit.items[-1].source} was killed" in str(told.value)
    assert "cluster.cpus_per_worker" in str(told.value)
    assert "\n" not in str(told.value)


def test_killed_driver_continues_and_gives_the_same_bytes(tmp_path: Path) -> None:
    words = flags(TINY | {"pack.shard_samples": 5})
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    status, output = run_cli(["pack", "surfaces", str(straight), *words])
    assert status == 0, output
    stop = random.SystemRandom().randrange(3, 30)
    print(f"to be killed after {stop} units")
    driver = subprocess.Popen(
        [sys.executable, "-c", ON_RAY, "pack", "surfaces", str(killed), *words], cwd=ROOT
    )
    try:
        deadline_s = time.monotonic() + 120
        while len(list(killed.glob("units/*.json"))) < stop and driver.poll() is None:
            assert time.monotonic() < deadline_s
            time.sleep(0.005)
        # At once, because it takes a while to find all its processes.
        driver.send_signal(signal.SIGSTOP)
        assert driver.poll() is None, f"it ended before {stop} units"
    finally:
        kill_tree(driver.pid)
    # What a write that is killed leaves behind, which not every kill hits.
    (killed / "train-normal/16/.blemish-killed.part").write_bytes(b"half")
    finished = {p.name: p.stat().st_mtime_ns for p in killed.glob("units/*.json")}
    assert len(finished) >= stop
    assert not (killed / "dataset.json").exists()
    shards = {p: p.stat().st_mtime_ns for p in killed.rglob("*.tar")}
    status, output = run_cli(["pack", "surfaces", str(killed), *words])
    assert status == 0, output
    done = [p for p in shards if f"{p.parts[-3]}-{p.name[:5]}.json" in finished]
    assert len(done) >= stop
    assert all(p.stat().st_mtime_ns == shards[p] for p in done), "finished units were packed again"
    assert _contents(killed) == _contents(straight)
    status, output = run_cli(["pack", "surfaces", str(killed), *words])
    assert (status, "already holds these images" in output) == (0, True)
