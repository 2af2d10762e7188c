"""Quality of our training step against the plain one: what is left out costs nothing.

`PYTHONPATH=. python tests/bench/train/reference_quality.py [--kimg 9] [--seeds 0,1,2]` trains the
demo's networks from the same weights on the same batches and latents with both steps (plain_gan.py:
R1 in every step, separate passes), without growing, since the plain networks do not grow. It prints
sliced Wasserstein distance and test AUROC for each seed and, over the seeds, the mean difference
with its 95 % interval (Student's t), and writes tests/bench/results/train_reference_quality.json.
"""

import os

# Before numpy is loaded: each model has one core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import functools
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch
from scipy import stats

from cluster.config import Config, load_config
from cluster.model_store import Model
from cluster.train_loop import schedule_of
from data.preparation import Preparation
from data.store import Store
from data.stream import normalise
from gan.networks import num_stages
from gan.objective import weights_for_contamination
from gan.state import TrainingState
from gan.swd import SlicedWasserstein
from tests.bench.data.common import ROOT, write_results
from tests.bench.resumable import listed
from tests.bench.train import in_memory
from tests.bench.train.in_memory import Feed, TrainingImages, new_state, trained_model
from tests.bench.train.mnist import aurocs
from tests.bench.train.mnist_gan import gan_scores
from tests.bench.train.mnist_images import SIDE, Parts, cell_images
from tests.bench.train.plain_pair import copy_weights, plain_training
from tests.bench.train.tables import Row, show

DIGIT, CONTAMINATION = 0, 0.2
STEPS = ("plain", "ours")
MEASURES = ("swd", "all", "seen", "unseen")


def plainly_trained(config: Config, images: TrainingImages) -> TrainingState:
    """As `in_memory.train`, with the plain step; the networks that come back are ours."""
    state = new_state(config, images)
    plain = plain_training(state.generator, state.discriminator)
    objective, feed = config.objective, Feed(config, images)
    decay = 0.5 ** (config.schedule.batch / (config.optimizer.ema_half_life_kimg * 1000))
    (phase,) = schedule_of(config)
    while state.images_seen < phase.end:
        real, abnormal, _ = feed.batch(phase)
        assert abnormal is not None
        plain.step(
            real,
            abnormal,
            torch.randn(len(real), config.networks.latent_dim, generator=state.latents),
            gamma=objective.gamma,
            alpha=objective.alpha,
            r1_weight=objective.r1_weight,
            decay=decay,
        )
        state.images_seen += len(real)
    copy_weights(state.average, plain.average, back=True)
    copy_weights(state.judge, plain.discriminator, back=True)
    return state


def run_model(step: str, seed: int, kimg: float) -> Row:
    """Train and judge one model."""
    torch.set_num_threads(1)
    parts = cell_images(DIGIT, CONTAMINATION, 0, seed)
    gamma, alpha = weights_for_contamination(CONTAMINATION)
    chosen = {
        "run.seed": seed,
        "objective.gamma": gamma,
        "objective.alpha": alpha,
        # The plain step has none.
        "optimizer.discriminator_half_life_kimg": 0.0,
        "schedule.fade_kimg": 0.0,
        "schedule.steady_kimg": 0.0,
        "schedule.final_kimg": kimg,
    }
    config = load_config(str(ROOT / "cluster/demo.yaml"), chosen)
    images = TrainingImages(parts["train-normal"][0], parts["train-abnormal"][0])
    training = plainly_trained if step == "plain" else in_memory.train
    with tempfile.TemporaryDirectory() as folder:
        started_s = time.perf_counter()
        preparation = Preparation(resolution=SIDE, channels=1)
        model = trained_model(Store(folder), config, images, preparation, training)
        seconds = time.perf_counter() - started_s
        scores = gan_scores(config, model, parts, DIGIT)
    told = aurocs(scores, parts["test"][1], DIGIT)
    told.pop("by_kind")
    distance = {"swd": round(swd(model, parts, seed), 1)}
    return {"step": step, "seed": seed} | distance | told | {"seconds": round(seconds, 1)}


def swd(model: Model, parts: Parts, seed: int) -> float:
    """Mean over the levels of the distance of as many generated images to the training images."""
    real = normalise(torch.from_numpy(parts["train-normal"][0].transpose(0, 3, 1, 2)))
    source = torch.Generator().manual_seed(seed)
    latents = torch.randn(len(real), model.generator.latent_dim, generator=source)
    with torch.no_grad():
        generated = model.generator(latents, num_stages(SIDE) - 1, 1.0).clamp(-1, 1)
    levels = SlicedWasserstein([real], seed=seed).distances([generated])
    return sum(levels.values()) / len(levels)


def differences(rows: Sequence[Row]) -> list[Row]:
    """Ours minus plain, mean over the seeds with its interval; both have the seeds in one order."""
    found: list[Row] = []
    for measure in MEASURES:
        plain, ours = (
            np.array([row[measure] for row in rows if row["step"] == step]) for step in STEPS
        )
        gains = ours - plain
        mean, error = float(gains.mean()), float(stats.sem(gains))
        half = float(stats.t.ppf(0.975, len(gains) - 1)) * error
        found.append(
            {
                "measure": measure,
                "ours - plain": round(mean, 4),
                "from": round(mean - half, 4),
                "to": round(mean + half, 4),
                "within noise": bool(abs(mean) <= half),
            }
        )
    return found


def main() -> None:
    """Train six models, print, write."""
    numbers = argparse.ArgumentParser(description=__doc__)
    numbers.add_argument("--kimg", type=float, default=9.0)
    numbers.add_argument("--seeds", type=listed(int), default=[0, 1, 2])
    numbers.add_argument("--processes", type=int, default=2)
    options = numbers.parse_args()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.processes, mp_context=context) as pool:
        steps, seeds = zip(*((step, seed) for seed in options.seeds for step in STEPS), strict=True)
        run = functools.partial(run_model, kimg=options.kimg)
        rows = []
        for row in pool.map(run, steps, seeds):
            print(row, flush=True)
            rows.append(row)
    compared = differences(rows)
    show("the same networks, images and starting weights", rows)
    show("the step without what the plain one does, less the plain one", compared)
    record = {"torch": torch.__version__, "options": vars(options), "models": rows}
    write_results("train_reference_quality", record | {"differences": compared})


if __name__ == "__main__":
    main()
