"""The endpoint under closed-loop load: each of N clients asks again once it is answered.

`PYTHONPATH=. python tests/bench/inspect/serve.py` prints a table and writes
tests/bench/results/inspect_serve.json; `--seconds 5` is a shorter look. Every 200 answer is
compared with the right one, and the script fails if one differs or a request ends in any other way
than 200 or 429. A client that is told 429 waits as long as Retry-After says. The model is a
small one without training, so that the endpoint itself counts too. Clients share the machine's
cores with it.
"""

import argparse
import http.client
import json
import tempfile
import threading
import time
from dataclasses import dataclass, field

import numpy as np
import torch

from cluster.config import load_config
from cluster.examiner import Examiner, Picture, Verdict
from data.store import Store
from tests.bench.data.common import write_results
from tests.bench.train.tables import Row, show
from tests.endpoint import PNG, Endpoint
from tests.jobs import flags
from tests.tiny_model import AT_32_PIXELS, calibrated_model, image_file

CLIENTS, NUM_IMAGES = (1, 4, 16, 64), 32
SETTINGS = AT_32_PIXELS | {"search.steps": 20, "serve.max_batch": 8, "serve.max_queue": 24}

Work = list[tuple[str, bytes, Verdict]]
"""Key, file and right answer of each image."""


@dataclass
class Seen:
    """What the clients of a load saw.

    Attributes:
        taken_s: Seconds of each 200 answer.
        refused: Number of 429 answers.
        wrong: Answers that are neither 429 nor the right one.
    """

    taken_s: list[float] = field(default_factory=list)
    refused: int = 0
    wrong: list[str] = field(default_factory=list)


def client(port: int, work: Work, first: int, until_s: float, seen: Seen) -> None:
    """Ask about one image after the other until the time is over."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    number = first
    while time.monotonic() < until_s:
        key, payload, right = work[number % len(work)]
        started_s = time.monotonic()
        try:
            connection.request("POST", f"/inspect?key={key}", payload, PNG)
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            seen.wrong.append(repr(error))
            connection.close()
            continue
        if answer.status == 429:
            seen.refused += 1
            time.sleep(float(answer.headers["Retry-After"]))
        elif answer.status == 200 and Verdict.model_validate(json.loads(content)) == right:
            seen.taken_s.append(time.monotonic() - started_s)
            number += 1
        else:
            seen.wrong.append(f"{answer.status} {content[:200]!r}")


def load(endpoint: Endpoint, work: Work, num_clients: int, seconds: float) -> Row:
    """Percentiles and throughput under one load."""
    started_s = time.monotonic()
    all_seen = [Seen() for _ in range(num_clients)]
    threads = [
        threading.Thread(
            target=client, args=(endpoint.port, work, 7 * n, started_s + seconds, all_seen[n])
        )
        for n in range(num_clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed_s = time.monotonic() - started_s
    taken_s = [value for seen in all_seen for value in seen.taken_s]
    wrong = [text for seen in all_seen for text in seen.wrong]
    assert not wrong, wrong[:5]
    p50, p95, p99 = (round(1000 * float(v)) for v in np.percentile(taken_s, [50, 95, 99]))
    return {
        "clients": num_clients,
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
        "images_per_s": round(len(taken_s) / elapsed_s, 1),
        "right": len(taken_s),
        "refused_429": sum(seen.refused for seen in all_seen),
        "wrong": len(wrong),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="length of each load, seconds")
    parser.add_argument("--replicas", type=int, default=1, help="copies of the model")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        settings = SETTINGS | {"run.dir": folder, "serve.replicas": options.replicas}
        calibrated_model(load_config(None, settings))
        files = [(f"part{n}", image_file(n, 128)) for n in range(NUM_IMAGES)]
        answers = Examiner.load(Store(folder)).examine([Picture(f, key) for key, f in files])
        rights = [answer for answer in answers if isinstance(answer, Verdict)]
        work = [(*file, right) for file, right in zip(files, rights, strict=True)]
        with Endpoint(flags(settings)) as endpoint:
            load(endpoint, work, 4, 3.0)
            rows = [load(endpoint, work, count, options.seconds) for count in CLIENTS]
            assert endpoint.stop() == 0
    show(f"closed loop, {options.replicas} replica(s)", rows)
    record = {"options": vars(options), "settings": SETTINGS, "loads": rows}
    write_results("inspect_serve", record)


if __name__ == "__main__":
    main()
