"""Quality on MNIST, digit by digit, beside AnoGAN and textbook detectors.

`PYTHONPATH=. python tests/bench/train/mnist.py` trains and judges every model for each normal digit
and contamination and prints the mean AUROC over the digits. Kinds of anomaly: the five next digits
contaminate the training images, the other four do not. Labelled (seen) are those that contaminate
or, with `--labelled others`, those that do not; the rest is unseen. `--labelled reviewed` are these
and the wrong ones among the method's first suspects, as many as are wrong. Every model gets the
same images and labels. The means of all that was ever run go to tests/bench/results/mnist.json.

A cell is one line of tests/bench/results/mnist_cells.jsonl; cells that stand there are not run
again, so the command may be stopped and goes on where it was. Trained models are kept in
outputs/mnist_models: another score, say `--set search.statistic=mean`, is quick.
`--digits 0,1 --contaminations 0.2 --models method --kimg 6` runs a part, `--train-images 3000`
takes so many from $BLEMISH_IMAGES/mnist, `--set objective.r1_weight=0.1` changes a setting.
"""

import os

# Before numpy is loaded: each cell has one core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import hashlib
import json
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sklearn.metrics import roc_auc_score

from cluster.config import Config, load_config
from data.store import Store
from gan.objective import weights_for_contamination
from tests.bench import resumable
from tests.bench.data.common import RESULTS, ROOT, skip_without_images, write_results
from tests.bench.resumable import Row, grouped, listed, load_rows, row_of, setting
from tests.bench.train.in_memory import RESULT_VERSION, trained_with
from tests.bench.train.mnist_classic import MODELS, classic_scores
from tests.bench.train.mnist_gan import gan_scores, trained_on
from tests.bench.train.mnist_images import LABELLED, Parts, cell_images, known_digits, reviewed

CELLS = "mnist_cells.jsonl"
METHOD, ANOGAN = "method", "AnoGAN"
GANS = (METHOD, ANOGAN)
CONTAMINATIONS = (0.0, 0.1, 0.2, 0.4)
ASSUMED = 0.1
"""What a user without any idea of the contamination may assume; used where there is none."""
KINDS = ("all", "seen", "unseen")
KIMG = 18.0


@dataclass(frozen=True)
class Cell:
    """What decides a result.

    Attributes:
        digit: the normal class.
        contamination: abnormal share of the images called normal.
        model: a name of `GANS` or of `MODELS`.
        train_images: images called normal; 0 for the demo's 280 and contaminants.
        seed: seed of the split and of the training.
        labelled: which kinds are, one of `LABELLED`.
        settings: what differs from cluster/demo.yaml, by dotted path; empty for textbook models,
            unless a model of the method chose their images (`reviewed`).
        version: `RESULT_VERSION` of the code that trains and judges; 0 where no GAN has a part.
    """

    digit: int
    contamination: float
    model: str
    train_images: int
    seed: int
    labelled: str
    settings: dict[str, Any]
    version: int = 0


HEAD = tuple(field.name for field in fields(Cell) if field.name != "digit")
"""What the digits of a mean share."""


def config_of(cell: Cell) -> Config:
    """A run's settings: the demo's, with gamma and alpha by the rule or those of AnoGAN."""
    gamma, alpha = (1.0, 0.0)
    if cell.model == METHOD:
        gamma, alpha = weights_for_contamination(cell.contamination or ASSUMED)
    chosen = {"run.seed": cell.seed, "objective.gamma": gamma, "objective.alpha": alpha}
    return load_config(str(ROOT / "cluster/demo.yaml"), chosen | cell.settings)


def model_folder(cell: Cell) -> Store:
    """Where the cell's model is kept, so that another score needs no training."""
    facts = asdict(cell) | {"settings": trained_with(config_of(cell)), "version": None}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
    return Store(str(ROOT / "outputs")).child("mnist_models", f"{cell.digit}-{cell.model}-{digest}")


def run_cell(cell: Cell) -> Row:
    """Train and judge one model; returns the cell with its numbers."""
    torch.set_num_threads(1)
    started_s = time.perf_counter()
    parts = cell_images(cell.digit, cell.contamination, cell.train_images, cell.seed, cell.labelled)
    kinds = parts["test"][1]
    told: Row = {}
    if cell.labelled == "reviewed":
        unlabelled = len(parts["train-normal"][0])
        parts = after_review(cell, parts)
        told["found"] = unlabelled - len(parts["train-normal"][0])
    if cell.model in GANS:
        config = config_of(cell)
        folder = model_folder(cell)
        model = trained_on(folder, config, parts)
        scores: NDArray[Any] = gan_scores(config, model, parts, cell.digit, kept=folder)
    else:
        scores, told["chosen"] = classic_scores(cell.model, parts, cell.digit)
    told |= aurocs(scores, kinds, cell.digit, cell.labelled)
    return asdict(cell) | told | {"seconds": round(time.perf_counter() - started_s, 1)}


def after_review(cell: Cell, parts: Parts) -> Parts:
    """The images after a person looked at the suspects of the method's model made without them."""
    before = replace(cell, model=METHOD, labelled="others")
    config = config_of(before)
    folder = model_folder(before)
    model = trained_on(folder, config, parts)
    scores = gan_scores(config, model, parts, cell.digit, "train-normal", folder)
    return reviewed(parts, scores, cell.digit)


def aurocs(
    scores: NDArray[Any], kinds: NDArray[np.int64], normal_digit: int, labelled: str = LABELLED[0]
) -> Row:
    """AUROC of the abnormal test images, of seen and unseen kinds and of each, against all normal.

    Args:
        scores: [N], high for abnormal.
        kinds: [N] digits.
        normal_digit: the normal class.
        labelled: one of `LABELLED`; these kinds are seen.
    """
    wrong = kinds != normal_digit
    seen = np.isin(kinds, known_digits(normal_digit, labelled))

    def against_normal(chosen: NDArray[np.bool_]) -> float:
        used = chosen | ~wrong
        return round(float(roc_auc_score(wrong[used], scores[used])), 4)

    groups = {"all": wrong, "seen": wrong & seen, "unseen": wrong & ~seen}
    row: Row = {name: against_normal(chosen) for name, chosen in groups.items()}
    by_kind = {str(kind): against_normal(kinds == kind) for kind in np.unique(kinds[wrong])}
    return row | {"by_kind": by_kind}


def cells_of(options: argparse.Namespace) -> list[Cell]:
    """All cells of a table, those with little to do first."""
    settings = {"schedule.final_kimg": options.kimg} | dict(options.set)
    learned = GANS if options.labelled != LABELLED[-1] else (*GANS, *MODELS)
    return [
        Cell(
            digit,
            contamination,
            model,
            options.train_images,
            options.seed,
            options.labelled,
            settings if model in learned else {},
            RESULT_VERSION if model in learned else 0,
        )
        for model in sorted(options.models, key=lambda name: name in GANS)
        for contamination in options.contaminations
        for digit in options.digits
    ]


def run_missing(cells: Sequence[Cell], store: Store, pool: Executor) -> Iterator[Row]:
    """Run the cells without a row; each row is stored before it is given out."""

    def run_all(missing: list[Cell]) -> Iterator[Row]:
        for done in as_completed([pool.submit(run_cell, cell) for cell in missing]):
            yield done.result()

    yield from resumable.run_missing(cells, store, CELLS, run_all)


def means(rows: Sequence[Row]) -> list[Row]:
    """Mean AUROC over the digits, where all else is the same."""
    result = []
    for head, found in grouped(rows, HEAD):
        mean = {kind: round(float(np.mean([row[kind] for row in found])), 4) for kind in KINDS}
        lowest = min(row["all"] for row in found)
        result.append(head | {"digits": len(found)} | mean | {"lowest": lowest})
    return result


def show(summary: Sequence[Row]) -> None:
    """Print one line for each model, one group of columns for each contamination."""
    contaminations = list(dict.fromkeys(row["contamination"] for row in summary))
    table = Table("model", title="Mean AUROC over the digits: all, seen, unseen kinds")
    for contamination in contaminations:
        table.add_column(f"{contamination:.0%} contamination")
    for model in dict.fromkeys(row["model"] for row in summary):
        found = {row["contamination"]: row for row in summary if row["model"] == model}
        texts = (_text(found.get(contamination)) for contamination in contaminations)
        table.add_row(model, *texts)
    Console().print(table)


def _text(row: Row | None) -> str:
    if row is None:
        return "-"
    few = "" if row["digits"] == 10 else f" ({row['digits']} digits)"
    return " ".join(f"{row[kind]:.3f}" for kind in KINDS) + few


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    numbers = argparse.ArgumentParser(description=__doc__)
    models = (*MODELS, *GANS)
    numbers.add_argument("--digits", type=listed(int), default=list(range(10)))
    numbers.add_argument("--contaminations", type=listed(float), default=list(CONTAMINATIONS))
    numbers.add_argument("--models", type=listed(str), default=list(models), help=", ".join(models))
    numbers.add_argument("--kimg", type=float, default=KIMG)
    numbers.add_argument("--train-images", type=int, default=0)
    numbers.add_argument("--seed", type=int, default=0)
    numbers.add_argument("--labelled", choices=LABELLED, default=LABELLED[0])
    numbers.add_argument("--processes", type=int, default=2)
    numbers.add_argument("--set", type=setting, action="append", default=[])
    options = numbers.parse_args(words)
    if unknown := set(options.models) - set(models):
        numbers.error(f"--models has {', '.join(unknown)}; there are {', '.join(models)}")
    return options


def main() -> None:
    """Run what is missing, print, write."""
    options = parse()
    if options.train_images:
        skip_without_images()
    cells, store = cells_of(options), Store(str(RESULTS))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.processes, mp_context=context) as pool:
        for row in run_missing(cells, store, pool):
            numbers = " ".join(f"{kind} {row[kind]:.3f}" for kind in KINDS)
            head = f"{row['model']}, digit {row['digit']}, {row['contamination']:.0%}"
            print(f"{head}: {numbers} ({row['seconds']} s)", flush=True)
    rows = load_rows(store, CELLS)
    show(means([found for cell in cells if (found := row_of(cell, rows))]))
    write_results("mnist", {"rows": means(rows)})


if __name__ == "__main__":
    main()
