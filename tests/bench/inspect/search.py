"""The latent search against AnoGAN's, on the demo's digits and one model of its settings.

`PYTHONPATH=. python tests/bench/inspect/search.py` prints tables and writes
tests/bench/results/inspect_search.json. `--weights FILE` keeps the trained model (it takes minutes)
from one run to the next, `--images 200` tests fewer digits, `--pyod PYTHON` names a Python that has
pyod, whose AnoGAN then is in the table. On one thread, in seconds of CPU time, so that a busy
machine counts less; sides that are compared take turns.

AnoGAN's search is tests/numerics/plain_search.py: one image at a time, features of the query in
each step anew, 500 steps. Its speed is measured on a few steps; its scores are those of our search
with 500 steps from the same random starts; test_search.py in that folder shows that they are equal.
"""

import argparse
import functools
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor

from cluster.engine import search_settings
from gan.search import SearchResult, latent_search
from gan.search_loss import SearchSettings
from tests.bench.data.common import write_results
from tests.bench.data.turns import against_bar, in_turns, rate, ratio
from tests.bench.inspect.search_subject import CONTAMINATION, DIGIT, SEED, Subject, prepare
from tests.bench.train.mnist_images import cell_images
from tests.bench.train.tables import Row, show
from tests.numerics.plain_search import plain_search

NAIVE_STEPS, SPEED_BAR, WARM_BAR = 500, 8.0, 60.0
RESAMPLES = 2000
PLACES = ("weights", "pyod")
"""Options that name files of one machine, and are not recorded."""


def cpu_timed(function: Callable[[], object]) -> Callable[[], float]:
    """The function, telling how many seconds of CPU time it took."""

    def timed() -> float:
        started_s = time.process_time()
        function()
        return time.process_time() - started_s

    return timed


def per_step(subject: Subject, turns: int) -> tuple[list[Row], float]:
    """Images/s of one step: AnoGAN's search and ours, in turns; and AnoGAN's seconds per step."""
    settings, steps = search_settings(subject.config.search), 10
    block = subject.images[: settings.block]
    starts = subject.starts(settings, "random")
    latents = starts([str(number) for number in range(len(block))], block)
    short = {"step_size": settings.step_size, "feature_weight": settings.feature_weight}

    def naive() -> None:
        plain_search(
            subject.generator,
            subject.discriminator,
            block[:1],
            latents[0],
            **short,
            steps=steps,
            feature_levels=settings.feature_levels,
            stage=subject.stage,
        )

    def ours() -> None:
        latent_search(
            subject.generator,
            subject.discriminator.features,
            block,
            latents,
            SearchSettings(**{**vars(settings), "steps": steps}),
            stage=subject.stage,
        )

    taken = in_turns({"AnoGAN": cpu_timed(naive), "ours": cpu_timed(ours)}, turns)
    # Both score once more than they step.
    amounts = {"AnoGAN": steps + 1, "ours": len(block) * (steps + 1)}
    rows: list[Row] = [
        {"search": name, "image_steps_per_s": rate(seconds, amounts[name])}
        for name, seconds in taken.items()
    ]
    rows[1] |= against_bar(len(block) * ratio(taken, "ours", "AnoGAN"), SPEED_BAR)
    return rows, 1 / rows[0]["image_steps_per_s"]


def compaction(subject: Subject, turns: int, count: int) -> list[Row]:
    """Images/s with a plateau stop, all images at once and block after block."""
    settings = SearchSettings(
        **{**vars(search_settings(subject.config.search)), "steps": 100}
        | {"patience": 5, "tolerance": 0.01}
    )
    starts, images = subject.starts(settings, "nearest"), subject.images[:count]
    latents = starts([str(number) for number in range(len(images))], images)
    search = functools.partial(
        latent_search,
        subject.generator,
        subject.discriminator.features,
        settings=settings,
        stage=subject.stage,
    )

    def apart() -> list[SearchResult]:
        blocks = zip(images.split(settings.block), latents.split(settings.block), strict=True)
        return [search(image_BCHW=image, start_BKZ=latent) for image, latent in blocks]

    together = search(image_BCHW=images, start_BKZ=latents)
    same = torch.equal(together.score, torch.cat([found.score for found in apart()]))
    taken = in_turns(
        {
            "block after block": cpu_timed(apart),
            "with compaction": cpu_timed(lambda: search(image_BCHW=images, start_BKZ=latents)),
        },
        turns,
    )
    rows: list[Row] = [
        {"slots": name, "images": len(images), "images_per_s": rate(seconds, len(images))}
        for name, seconds in taken.items()
    ]
    rows[1] |= {"ratio": round(ratio(taken, "with compaction", "block after block"), 2)}
    return [row | {"same_scores": same, "mean_steps": _mean(together.steps)} for row in rows]


def quality(subject: Subject, naive_step_s: float) -> list[Row]:
    """AUROC and images/s of several searches; the first is AnoGAN's."""
    base = vars(search_settings(subject.config.search))
    plans: list[tuple[str, str, int, dict[str, Any]]] = [
        ("AnoGAN: 500 steps, random", "random", 1, {"steps": NAIVE_STEPS}),
        ("100 steps, random", "random", 1, {"steps": 100}),
        ("100 steps, nearest", "nearest", 1, {"steps": 100}),
        ("100 steps, nearest, plateau", "nearest", 1, {"steps": 100, "patience": 5}),
        ("20 steps, nearest", "nearest", 1, {"steps": 20}),
        ("20 steps, 3 nearest", "nearest", 3, {"steps": 20}),
        ("20 steps, encoder", "encoder", 1, {"steps": 20}),
        ("20 steps, encoder or nearest", "both", 1, {"steps": 20}),
        ("10 steps, encoder", "encoder", 1, {"steps": 10}),
        ("0 steps, encoder", "encoder", 1, {"steps": 0}),
        ("0 steps, nearest", "nearest", 1, {"steps": 0}),
    ]
    rows: list[Row] = []
    drawn = np.random.default_rng(SEED).integers(
        len(subject.images), size=(RESAMPLES, len(subject.images))
    )
    for name, kind, restarts, chosen in plans:
        settings = SearchSettings(**base | chosen)
        starts = subject.starts(settings, kind, restarts)
        started_s = time.process_time()
        found = subject.search(settings, starts, subject.images)
        spent_s = time.process_time() - started_s
        scores = found.score.numpy()
        speed = len(scores) / spent_s
        row = auroc_row(name, subject.abnormal, scores, drawn)
        row |= {"mean_loss": round(_mean(found.score), 4), "mean_steps": _mean(found.steps)}
        if not rows:
            row["batched_images_per_s"] = round(speed, 3)
            # One start, and one scoring after the last step.
            speed = 1 / (naive_step_s * (NAIVE_STEPS + 1))
        rows.append(row | {"images_per_s": round(speed, 3)})
        first = rows[0]
        rows[-1]["times_anogan"] = round(speed / first["images_per_s"], 1)
        rows[-1]["as_good"] = bool(row["auroc"] >= first["interval"][0])
        print(json.dumps(rows[-1]), flush=True)
    return rows


def auroc_row(
    name: str,
    abnormal: NDArray[np.bool_],
    scores: NDArray[Any],
    drawn: NDArray[np.int64],
) -> Row:
    """AUROC and its 95 % bootstrap interval."""
    values = [
        roc_auc_score(abnormal[rows], scores[rows])
        for rows in drawn
        if 0 < abnormal[rows].mean() < 1
    ]
    low, high = np.quantile(values, [0.025, 0.975])
    auroc = round(float(roc_auc_score(abnormal, scores)), 4)
    return {"search": name, "auroc": auroc, "interval": [round(low, 4), round(high, 4)]}


def pyod_row(subject: Subject, python: str, epochs: int) -> Row:
    """PyOD's AnoGAN, dense networks on pixels in [0, 1] (it needs pandas and matplotlib, too)."""
    if not python:
        return {"search": "PyOD AnoGAN", "note": "not run: name a Python that has it with --pyod"}
    normal = cell_images(DIGIT, CONTAMINATION, 0, SEED)["train-normal"][0]
    train_NF = normal.reshape(len(normal), -1) / 255.0
    test_NF = (subject.images.flatten(1).numpy() + 1) / 2
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "digits.npz"
        np.savez(file, train=train_NF, test=test_NF)
        script = Path(__file__).with_name("pyod_anogan.py")
        words = [python, str(script), str(file), str(epochs)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"search": "PyOD AnoGAN", "note": f"failed: {done.stderr.splitlines()[-1]}"}
    told = json.loads(done.stdout.splitlines()[-1])
    rng = np.random.default_rng(SEED)
    drawn = rng.integers(len(test_NF), size=(RESAMPLES, len(test_NF)))
    name = f"PyOD {told['version']} AnoGAN"
    row = auroc_row(name, subject.abnormal, np.array(told["scores"]), drawn)
    return row | {"images_per_s": round(len(test_NF) / told["test_s"], 1)}


def _mean(values: Tensor) -> float:
    return round(float(values.double().mean()), 4)


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    numbers = argparse.ArgumentParser(description=__doc__)
    numbers.add_argument("--weights", default="")
    numbers.add_argument("--images", type=int, default=500)
    numbers.add_argument("--kimg", type=float, default=20.0, help="training of the encoder")
    numbers.add_argument("--turns", type=int, default=5)
    numbers.add_argument("--pyod", default="", metavar="PYTHON")
    numbers.add_argument("--pyod-epochs", type=int, default=200)
    return numbers.parse_args(words)


def main() -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    options = parse()
    subject = prepare(options)
    steps, naive_step_s = per_step(subject, options.turns)
    show("one step, one thread", steps)
    slots = compaction(subject, max(1, options.turns // 2), min(128, options.images))
    show("plateau stop", slots)
    rows = quality(subject, naive_step_s)
    warm = max(row["times_anogan"] for row in rows[1:] if row["as_good"])
    rows.append(pyod_row(subject, options.pyod, options.pyod_epochs))
    show("quality and speed", rows)
    chosen = {name: value for name, value in vars(options).items() if name not in PLACES}
    record = {"options": chosen, "step": steps, "slots": slots, "quality": rows}
    write_results("inspect_search", record | {"warm": against_bar(warm, WARM_BAR)})


if __name__ == "__main__":
    main()
