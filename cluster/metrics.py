"""What every metric of training means, and its gauge for Prometheus.

Ray serves the gauges at each node's metrics port, with `ray_` before their names.
"""

import re
import threading
from collections.abc import Mapping

from ray.util.metrics import Gauge

REPEAT_S = 5.0
"""Time between two settings of the same value: half the interval at which Ray collects them."""

MEANINGS = {
    "train/kimg": "thousands of images seen by all ranks together",
    "train/resolution": "side of the images trained on, in pixels",
    "train/fade": "weight of the newest block; 1 once it is faded in",
    "train/images_per_s": "training images per second, all ranks together",
    "train/memory_gib": "most memory so far: of tensors on a GPU, else of the process; GiB, rank 0",
    "train/loss_d": "loss of D without R1",
    "train/loss_g": "loss of G",
    "train/r1": "mean squared gradient of D's logit at training images",
    "train/logit_real": "mean logit of D on training images; above 0 means taken for real",
    "train/sign_real": "mean sign of logit + log(gamma) there; near 1 D knows them by heart",
    "train/logit_fake": "mean logit of D on generated images",
    "train/logit_abnormal": "mean logit of D on known abnormal images",
    "train/augment_probability": "probability of each of augment.transforms",
    "train/lr_factor": "learning rates as a factor of those configured",
    "train/grad_norm_d": "norm of D's gradient",
    "train/grad_norm_g": "norm of G's gradient",
    "train/swd": "sliced Wasserstein distance x 1000, generated to training images; mean of levels",
    "train/swd_R": "the same for structure at the scale of R pixels alone",
    "train/validation_auroc": "AUROC of a latent search on validation images at this resolution",
    "train/best_auroc": "highest so far at the final resolution; that model lies in RUN/best",
    "data/wait_s": "time waited for training images since the last row, in seconds, rank 0",
    "data/wait_share": "the same as a share of the time since the last row",
    "data/lost_images": "training images that could not be read, rank 0",
    "ranks/num_workers": "training workers",
    "ranks/wait_share_max": "data/wait_share of the rank that waited longest",
    "ranks/wait_share_min": "data/wait_share of the rank that waited least",
    "ranks/memory_gib_max": "train/memory_gib of the rank that takes most",
}
"""Metric of a row -> what it says. R stands for a resolution; ranks/ needs several of them."""


def meaning(metric: str) -> str:
    """What a metric says; empty if that is not known."""
    return MEANINGS.get(re.sub(r"_\d+$", "_R", metric), "")


class Gauges:
    """A gauge for each metric, such as blemish_images_per_s for train/images_per_s.

    Ray forgets a gauge that is not set for a while, and rows may be further apart than that, so a
    thread sets all of them again and again until `close`.

    Args:
        run: Run directory, the value of every gauge's tag `run`.
    """

    def __init__(self, run: str) -> None:
        self._tags = {"run": run}
        self._gauges: dict[str, Gauge] = {}
        self._values: dict[str, float] = {}
        self._lock, self._closed = threading.Lock(), threading.Event()
        threading.Thread(target=self._repeat, name="gauges", daemon=True).start()

    def set(self, row: Mapping[str, float]) -> None:
        """Set the gauges of a row's metrics, and the others to what they were."""
        with self._lock:
            self._values |= row
            for metric, value in self._values.items():
                if metric not in self._gauges:
                    name = f"blemish_{metric.partition('/')[2]}"
                    self._gauges[metric] = Gauge(name, meaning(metric), ("run",))
                self._gauges[metric].set(value, self._tags)

    def close(self) -> None:
        """Let Ray forget the gauges."""
        self._closed.set()

    def _repeat(self) -> None:
        while not self._closed.wait(REPEAT_S):
            self.set({})
