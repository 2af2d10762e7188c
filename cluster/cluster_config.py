"""How jobs use the Ray cluster: the section `cluster`."""

from typing import Literal

import torch
from pydantic import Field, model_validator

from cluster.errors import UserError
from cluster.section import Section


class Cluster(Section):
    """Use of the Ray cluster."""

    num_workers: int = Field(2, ge=1, le=4096)
    """Training workers (ranks)."""
    min_workers: int = Field(0, ge=0, le=4096)
    """Workers that a training run goes on with while nodes are missing; 0: all num_workers."""
    resize_s: float = Field(60.0, ge=1, le=86_400)
    """Time between two looks for more workers where some are missing, in seconds."""
    num_actors: int = Field(2, ge=1, le=4096)
    """Inspection actors."""
    cpus_per_worker: float = Field(1.0, gt=0, le=1024)
    """CPUs reserved for each worker or actor; also its number of threads, rounded down."""
    gpus_per_worker: float = Field(0.0, ge=0, le=1)
    """GPUs reserved for each worker or actor, at most one; training workers do not share one."""
    images_per_pass: int = Field(0, ge=0, le=65_536)
    """Training images that a worker computes at once; larger batches are cut; 0: all, in images."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Numbers of the training's convolutions; statistics, losses, D where R1 is due and the encoder
    are always float32. Inspections have search.precision."""
    deterministic: bool = False
    """Whether GPUs train with algorithms that repeat bit for bit, as CPUs do: slower, yes or no."""
    dry_run: bool = False
    """Only print the plan of a training run, with memory and time from a short probe, and stop."""
    max_failures: int = Field(3, ge=-1, le=1000)
    """Failures survived, of a training run's workers and of an inspected unit; -1: any number."""
    checkpoint_kimg: float = Field(50.0, ge=0.001, le=100_000)
    """Images between two checkpoints, in kimg."""
    keep_checkpoints: int = Field(2, ge=1, le=1000)
    """Checkpoints kept."""

    @model_validator(mode="after")
    def _fewest_is_no_more(self) -> "Cluster":
        if self.min_workers > self.num_workers:
            raise ValueError(
                f"min_workers={self.min_workers} must not be above num_workers="
                f"{self.num_workers}; lower it or set 0"
            )
        return self

    def check_training(self) -> None:
        """Refuse what only inspection and the endpoint can do.

        Raises:
            UserError: If training workers would share a GPU.
        """
        if self.num_workers > 1 and 0 < self.gpus_per_worker <= 0.5:
            raise UserError(
                f"cluster.gpus_per_worker={self.gpus_per_worker:g} would let the "
                f"{self.num_workers} training workers share a GPU, which NCCL refuses (inspection "
                "and the endpoint may); set it to 1, or cluster.num_workers=1"
            )

    @property
    def num_threads(self) -> int:
        """CPU threads of a worker or actor."""
        return max(1, int(self.cpus_per_worker))

    @property
    def device(self) -> torch.device:
        """What a worker or actor computes on; Ray hides no GPU from one that reserved none."""
        has_gpu = self.gpus_per_worker > 0 and torch.cuda.is_available()
        return torch.device("cuda" if has_gpu else "cpu")

    @property
    def worker_counts(self) -> range:
        """Numbers of workers that a training run may have."""
        return range(self.min_workers or self.num_workers, self.num_workers + 1)
