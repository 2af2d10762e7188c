"""The demo: AnoGAN and the method side by side on real digits, from images to one table."""

import json
import shlex
import sys
import time
from typing import Any
from urllib.parse import quote

from rich.console import Console
from rich.table import Table

from cluster import tracking
from cluster.calibration import calibration_for
from cluster.claims import check_no_dry_run
from cluster.config import Config
from cluster.evaluate import evaluate_run
from cluster.inspection import inspect_split
from cluster.mlflow_client import connect
from cluster.pack import CONTAMINATION, write_dataset
from cluster.ray_session import ray_session
from cluster.report import write_report
from cluster.train import claim_run, train_and_calibrate
from data.store import Store
from gan.objective import weights_for_contamination

METHOD = "method"
BASELINE = "baseline"
_COLUMNS = {
    "auroc": "AUROC",
    "auroc_seen": "AUROC, seen kinds",
    "auroc_unseen": "AUROC, unseen kinds",
    "average_precision": "avg. precision",
    "best_f1": "best F1",
    "images_per_s": "images/s",
}


def demo(config: Config) -> int:
    """Run the whole chain twice and compare; the command `demo`.

    The method's gamma and alpha come from the contamination rule unless they are given, nothing
    from the test images.
    """
    check_no_dry_run(config, "demo")
    started_s = time.monotonic()
    root = Store(config.run.dir)
    console = Console()
    console.print("[bold]Packing 5,000 digits; 20 % of the normal training images are wrong")
    runs = demo_runs(config)
    write_dataset(runs[METHOD])
    summary: dict[str, Any] = {}
    min_cpus = config.cluster.num_workers * config.cluster.cpus_per_worker
    with ray_session(min_cpus), tracking.tracked_run(config, name="demo") as parent:
        for name, run in runs.items():
            gamma, alpha = run.objective.gamma, run.objective.alpha
            console.print(f"[bold]{name}: gamma={gamma:.2f}, alpha={alpha:.2f}")
            summary[name] = run_chain(run, name, parent.run_id)
    summary["seconds"] = round(time.monotonic() - started_s, 1)
    root.write_bytes("summary.json", json.dumps(summary, indent=1).encode())
    _print_summary(console, config, runs, summary)
    return 0


def demo_runs(config: Config) -> dict[str, Config]:
    """Configurations of both models: same data, budget and seed, other gamma and alpha."""
    objective = config.objective
    gamma, alpha = weights_for_contamination(CONTAMINATION)
    # What the user asks for counts more than the rule.
    gamma = objective.gamma if "gamma" in objective.model_fields_set else gamma
    alpha = objective.alpha if "alpha" in objective.model_fields_set else alpha
    weights = {BASELINE: (1.0, 0.0), METHOD: (gamma, alpha)}
    root = Store(config.run.dir)
    runs = {}
    for name, (g, a) in weights.items():
        run = config.run.model_copy(update={"dir": root.url(name)})
        data = config.data.model_copy(update={"uri": root.url("data")})
        objective = config.objective.model_copy(update={"gamma": g, "alpha": a})
        tracked = config.tracking.model_copy(update={"uri": tracking.tracking_uri(config)})
        inspect = config.inspect.model_copy(update={"dir": "", "split": "test"})
        update = {"run": run, "data": data, "objective": objective, "tracking": tracked}
        update["inspect"] = inspect
        runs[name] = config.model_copy(update=update)
    return runs


def run_chain(config: Config, name: str, parent_run_id: str | None) -> dict[str, Any]:
    """Train, calibrate, inspect the test split, evaluate, report; returns the metrics."""
    claim_run(config)
    with tracking.tracked_run(config, name=name, parent_run_id=parent_run_id) as ref:
        train_and_calibrate(config, ref)
        manifest = inspect_split(config, calibration_for(config))
        metrics = evaluate_run(config)
        write_report(config)
    return metrics | {"images_per_s": manifest["images_per_s"]}


def comparison_page(configs: list[Config]) -> str | None:
    """MLflow's page that compares runs, relative to its address; None where it does not answer."""
    refs = [ref for config in configs if (ref := tracking.load_run(config)) and ref.run_id]
    try:
        client = connect(refs[0].uri)
        runs = [client.get_run(str(ref.run_id)).info for ref in refs]
    # Beneath MLflow lie HTTP clients and database drivers with errors of their own.
    except Exception:
        return None
    ids = {"runs": [r.run_id for r in runs], "experiments": [r.experiment_id for r in runs[:1]]}
    return "#/compare-runs?" + "&".join(f"{k}={quote(json.dumps(v))}" for k, v in ids.items())


def _print_summary(
    console: Console, config: Config, runs: dict[str, Config], summary: dict[str, Any]
) -> None:
    table = Table(title="Held-out digits; scores and thresholds were fitted on others")
    table.add_column("model")
    for title in _COLUMNS.values():
        table.add_column(title, justify="right")
    for name in runs:
        values = (summary[name][column] for column in _COLUMNS)
        table.add_row(name, *("-" if value is None else f"{value:.3f}" for value in values))
    console.print(table)
    report = Store(runs[METHOD].run.dir).url("inspection/test/report.html")
    uri = tracking.public_uri(tracking.tracking_uri(config))
    python = shlex.quote(sys.executable)
    print(f"report:  {report}")
    print(f"compare: {python} -m mlflow ui --backend-store-uri {shlex.quote(uri)}")
    if page := comparison_page(list(runs.values())):
        print(f"         then http://localhost:5000/{page}")
    print(f"seconds: {summary['seconds']}")
