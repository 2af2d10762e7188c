"""The demo with several seeds: how far its table depends on chance.

`PYTHONPATH=. python tests/bench/demo_seeds.py [SEED ...]` prints a table and writes
tests/bench/results/demo_seeds.json. A seed whose summary exists under outputs/ is not run again.
"""

import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "tests/bench/results/demo_seeds.json"
SEEDS = (0, 1, 2, 3)
COLUMNS = ("auroc", "auroc_seen", "auroc_unseen", "average_precision", "best_f1", "images_per_s")


def run_demo(seed: int) -> dict[str, Any]:
    """Summary of the demo with one seed."""
    folder = ROOT / f"outputs/demo-seed-{seed}"
    if not (folder / "summary.json").exists():
        words = ["demo", "--run.seed", str(seed), "--run.dir", str(folder)]
        subprocess.run([sys.executable, "-m", "cluster", *words], cwd=ROOT, check=True)
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


def main() -> None:
    """Run, print, write."""
    seeds = [int(word) for word in sys.argv[1:]] or list(SEEDS)
    summaries = {seed: run_demo(seed) for seed in seeds}
    table = Table("seed", "model", *COLUMNS, "seconds", title="make demo, by seed")
    for seed, summary in summaries.items():
        for model in ("method", "baseline"):
            cells = (f"{summary[model][column]:.3f}" for column in COLUMNS)
            table.add_row(str(seed), model, *cells, str(summary["seconds"]))
    Console().print(table)
    record = {
        "command": "PYTHONPATH=. python tests/bench/demo_seeds.py",
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "seeds": {str(seed): summary for seed, summary in summaries.items()},
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
