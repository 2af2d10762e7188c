"""How good a model in training is: what is measured, and which model is kept."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from cluster import validation
from cluster.assessment import Assessor, fade_of
from cluster.best_model import BEST, BestModel, finish_with_best
from cluster.config import Config, load_config
from cluster.model_store import load_card, load_model
from cluster.train_loop import Worker, architecture_of
from data.dataset import load_index
from data.pack import pack
from data.reader import SplitReader
from data.sample import Sample
from data.shard_cache import ShardCache
from data.store import Store
from data.stream import normalise
from gan.schedule import Phase
from gan.state import Rates, TrainingState
from gan.swd import SlicedWasserstein
from tests.jobs import TINY

CPU = torch.device("cpu")
NUM_TRAINING = 40
LAST = Phase(stage=2, fading=False, start=100, end=200)
FADING = Phase(stage=2, fading=True, start=0, end=100)
BELOW = Phase(stage=1, fading=False, start=0, end=100)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Noise of 16 pixels, all of it in train-normal."""
    source = np.random.default_rng(0)
    samples = []
    for number in range(NUM_TRAINING):
        image = source.integers(0, 255, (16, 16, 1), np.uint8)
        name = f"n{number}"
        samples.append(Sample(name, image, "normal", "noise", name, "good", "train-normal"))
    store = Store(str(tmp_path_factory.mktemp("noise")))
    pack(samples, store, resolution=16, name="noise", seed=0, shard_samples=16)
    return store


class Measured:
    """An assessor of an untrained model, and the readers it opened."""

    def __init__(
        self, packed: Store, run: Path, *, images_per_pass: int = 0, **tracking: Any
    ) -> None:
        fields = {f"tracking.{name}": value for name, value in tracking.items()}
        places = {"data.uri": packed.uri, "run.dir": str(run)}
        limit = {"cluster.images_per_pass": images_per_pass}
        self.config = load_config(None, TINY | places | limit | fields)
        self.index = load_index(packed)
        self.opened: list[SplitReader] = []
        self.state = _state(self.config)
        architecture = architecture_of(self.config, self.index)
        self.assessor = Assessor(self.config, self.index, architecture, CPU, self.open)

    def open(self, resolution: int) -> SplitReader:
        cache = ShardCache(Store(self.config.data.uri))
        reader = SplitReader(
            cache, self.index, "train-normal", resolution, lanes=1, seed=0, max_bad_fraction=0.5
        )
        self.opened.append(reader)
        return reader

    def at(self, phase: Phase, images_seen: int) -> dict[str, float]:
        self.state.images_seen = images_seen
        return self.assessor.measure(self.state, phase)


def _state(config: Config) -> TrainingState:
    architecture = architecture_of(config, load_index(Store(config.data.uri)))
    rates = Rates(**config.optimizer.model_dump())
    return TrainingState(architecture, rates, seed=0, rank=0, device=CPU)


def test_swd_is_between_the_average_of_g_and_training_images(packed: Store, tmp_path: Path) -> None:
    measured = Measured(packed, tmp_path, swd_images=34)
    with torch.no_grad():
        for parameter in measured.state.generator.parameters():
            parameter.mul_(2)
    found = measured.at(LAST, 150)
    reader = measured.open(16)
    real = np.stack([reader.decode(n, p) for n, p in reader.payloads(range(34))])
    latents = torch.randn(34, 8, generator=torch.Generator().manual_seed(0))
    fake = measured.state.average(latents, 2, 1.0).clamp(-1, 1)
    swd = SlicedWasserstein([normalise(torch.from_numpy(real).permute(0, 3, 1, 2))], seed=0)
    expected = swd.distances([fake])[16]
    assert found == pytest.approx({"swd": expected, "swd_16": expected}, rel=1e-5)


def test_swd_follows_the_resolution_and_the_fade_and_reads_each_resolution_once(
    packed: Store, tmp_path: Path
) -> None:
    measured = Measured(packed, tmp_path)
    below = measured.at(BELOW, 100)
    assert list(below) == ["swd", "swd_8"]
    early, late = measured.at(FADING, 25), measured.at(FADING, 75)
    assert list(early) == ["swd", "swd_16"]
    assert early != late
    assert measured.at(FADING, 75) == late
    assert [reader.shape for reader in measured.opened] == [(1, 8, 8), (1, 16, 16)]
    assert not any(reader._open for reader in measured.opened), "files are left open"


def test_no_more_images_are_held_than_in_a_training_pass(packed: Store, tmp_path: Path) -> None:
    measured, made = Measured(packed, tmp_path, images_per_pass=4), set()
    measured.state.average.register_forward_pre_hook(lambda _, args: made.add(len(args[0])))
    found = measured.at(LAST, 150)
    assert made == {4}
    assert found == pytest.approx(Measured(packed, tmp_path).at(LAST, 150), rel=1e-4)


def test_a_run_that_is_resumed_measures_the_same(packed: Store, tmp_path: Path) -> None:
    straight = Measured(packed, tmp_path)
    straight.at(BELOW, 100)
    assert Measured(packed, tmp_path).at(LAST, 150) == straight.at(LAST, 150)


def test_training_images_that_are_lost_are_replaced(packed: Store, tmp_path: Path) -> None:
    copy = Store(str(tmp_path / "damaged"))
    for path in packed.list():
        copy.write_bytes(path, packed.read_bytes(path))
    damaged = load_index(copy).shards_of("train-normal", 16)[0].path
    copy.write_bytes(damaged, b"no tar")
    measured = Measured(copy, tmp_path)
    found = measured.at(LAST, 150)
    assert found["swd"] > 0
    assert found != Measured(packed, tmp_path).at(LAST, 150)


def test_no_training_image_counts_twice(packed: Store, tmp_path: Path) -> None:
    many, all_of_them = (Measured(packed, tmp_path, swd_images=n) for n in (256, NUM_TRAINING))
    assert many.at(LAST, 150) == all_of_them.at(LAST, 150)


def test_nothing_is_measured_that_was_not_asked_for(packed: Store, tmp_path: Path) -> None:
    assert Measured(packed, tmp_path, swd_images=0).at(LAST, 150) == {}


class Judge:
    """Stands for the latent search: gives the AUROCs it was told to."""

    measure = "first"

    def __init__(self, *aurocs: float) -> None:
        self._aurocs = iter(aurocs)

    def __call__(self, *_: Any) -> "Judge":
        return self

    def auroc(self, state: TrainingState, phase: Phase) -> float:
        return next(self._aurocs)


def test_best_model_is_chosen_at_the_final_resolution_without_a_fade(
    packed: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "Validator", Judge(0.99, 0.98, 0.7, 0.9, 0.8))
    measured = Measured(packed, tmp_path, swd_images=0, validation_images=1)
    run = Store(str(tmp_path))
    assert measured.at(BELOW, 100) == {"validation_auroc": 0.99}
    assert measured.at(FADING, 50) == {"validation_auroc": 0.98}
    assert not run.exists(BEST)
    assert measured.at(FADING, 100) == {"validation_auroc": 0.7, "best_auroc": 0.7}
    assert measured.at(LAST, 150) == {"validation_auroc": 0.9, "best_auroc": 0.9}
    best = {k: v.clone() for k, v in measured.state.average.state_dict().items()}
    with torch.no_grad():
        for parameter in measured.state.average.parameters():
            parameter.add_(1)
    assert measured.at(LAST, 200) == {"validation_auroc": 0.8, "best_auroc": 0.9}
    kept = load_model(run, f"{BEST}/002")
    assert (kept.card.images_seen, kept.card.validation_auroc) == (150, 0.9)
    for name, value in kept.generator.state_dict().items():
        assert torch.equal(value, best[name])


def _best(config: Config, measure: str = "first") -> BestModel:
    index = load_index(Store(config.data.uri))
    run, architecture = Store(config.run.dir), architecture_of(config, index)
    return BestModel(run, architecture, index.preparation, config.objective, measure=measure)


def test_best_so_far_is_known_again_after_a_restart(packed: Store, tmp_path: Path) -> None:
    config = load_config(None, TINY | {"data.uri": packed.uri, "run.dir": str(tmp_path)})
    state = _state(config)
    assert _best(config).offer(state, 0.8) == 0.8
    state.images_seen = 10
    again = _best(config)
    assert again.offer(state, 0.8) == 0.8
    assert _kept(tmp_path) == [0], "the first of two equals stays"
    assert again.offer(state, 0.9) == 0.9
    assert _kept(tmp_path) == [10]


def test_a_best_that_was_measured_otherwise_gives_way(packed: Store, tmp_path: Path) -> None:
    config = load_config(None, TINY | {"data.uri": packed.uri, "run.dir": str(tmp_path)})
    state, run = _state(config), Store(str(tmp_path))
    _best(config).offer(state, 0.95)
    state.images_seen = 10
    other = _best(config, "second")
    assert _kept(tmp_path) == [0], "it stays until there is another one"
    assert other.offer(state, 0.7) == 0.7
    assert _kept(tmp_path) == [10]
    assert finish_with_best(run)
    assert load_card(run).validation_auroc == 0.7


def _kept(run: Path) -> list[int]:
    """Images that the best models in a run directory had seen."""
    cards = run.glob(f"{BEST}/*/model.json")
    return sorted(json.loads(card.read_text())["images_seen"] for card in cards)


def test_a_kill_while_a_better_model_is_written_leaves_the_best_before(
    packed: Store, tmp_path: Path
) -> None:
    run = Store(str(tmp_path))
    config = load_config(None, TINY | {"data.uri": packed.uri, "run.dir": str(tmp_path)})
    state = _state(config)
    assert not finish_with_best(run)
    run.write_bytes(f"{BEST}/001/weights.safetensors", b"the first one, without its card")
    assert not finish_with_best(run)
    _best(config).offer(state, 0.9)
    run.write_bytes(f"{BEST}/003/weights.safetensors", b"the next one, without its card")
    shutil.copytree(tmp_path / BEST / "002", tmp_path / BEST / "000")
    (tmp_path / BEST / "000/weights.safetensors").unlink()
    assert _best(config).offer(state, 0.7) == 0.9
    assert finish_with_best(run)
    assert load_card(run).validation_auroc == 0.9
    state.images_seen = 50
    assert _best(config).offer(state, 0.95) == 0.95
    assert _kept(tmp_path) == [50]
    assert [path.name for path in (tmp_path / BEST).iterdir()] == ["004"]


@pytest.mark.parametrize(("keep_best", "images_seen"), [(False, 90), (True, 40)])
def test_finished_model_is_the_last_or_the_best(
    packed: Store, tmp_path: Path, keep_best: bool, images_seen: int
) -> None:
    config = load_config(
        None,
        TINY
        | {"data.uri": packed.uri, "run.dir": str(tmp_path)}
        | {"tracking.validation_images": 10, "tracking.keep_best": keep_best},
    )
    state, run = _state(config), Store(str(tmp_path))
    state.images_seen = 40
    _best(config).offer(state, 0.9)
    state.images_seen = 90
    worker = SimpleNamespace(
        config=config,
        run=run,
        state=state,
        index=load_index(packed),
        architecture=architecture_of(config, load_index(packed)),
        observer=SimpleNamespace(close=lambda: None),
    )
    Worker.finish(cast("Worker", worker))
    assert load_model(run).card.images_seen == images_seen
    assert run.exists(BEST)


def test_a_step_may_end_beyond_its_phase() -> None:
    state = cast("TrainingState", SimpleNamespace(images_seen=108))
    assert fade_of(state, FADING) == 1.0
