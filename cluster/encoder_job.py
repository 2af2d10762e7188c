"""After training: the encoder of the finished model, trained by one worker.

Generator and discriminator are those of run.dir/model, so a job that was killed in it is continued
by beginning the encoder again; it depends on nothing but the model, the data set and the settings.
"""

from collections.abc import Iterator
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError
from torch import Tensor

from cluster.config import Config
from cluster.errors import UserError
from cluster.model_store import load_model, save_encoder
from cluster.progress import remote_progress
from cluster.training_data import dataset_store, open_cache, open_split, run_store
from data.dataset import load_index
from data.errors import DataError
from data.stream import BatchStream, Share, normalise
from gan.encoder import EncoderTraining
from gan.model import place
from gan.networks import num_stages

_ALONE = "(the model itself is finished, the same command trains the encoder alone)"
_SAY_EVERY = 20
"""Steps between two lines of progress."""


def add_encoder(config: Config) -> None:
    """Let a worker of the Ray cluster train the encoder, and wait for it.

    Raises:
        UserError: If it failed for a reason the user can mend.
    """
    cluster, total = config.cluster, round(config.encoder.kimg * 1000)
    task: Any = ray.remote(
        num_cpus=cluster.cpus_per_worker,
        num_gpus=cluster.gpus_per_worker,
        max_retries=cluster.max_failures,
    )(train_encoder)
    with remote_progress("encoder", total=total, unit="image") as board:
        try:
            ray.get(task.remote(config, board))
        except RayTaskError as error:
            if isinstance(error.cause, torch.OutOfMemoryError):
                raise UserError(
                    f"the GPU is full ({str(error.cause).splitlines()[0]}); lower encoder.batch "
                    f"{_ALONE}"
                ) from error
            mendable = isinstance(error.cause, UserError | DataError)
            raise (error.cause if mendable else error) from error
        except RayError as error:
            raise UserError(
                "the process that trained the encoder was killed each time "
                f"({str(error).splitlines()[0]}); look for a lack of memory and lower "
                f"encoder.batch {_ALONE}"
            ) from error


def train_encoder(config: Config, board: Any = None) -> None:
    """Train the encoder of the finished model in this process, and add it to the model.

    Args:
        config: Configuration of the run.
        board: Actor that shows progress, a `cluster.progress.ProgressBoard`; None: nobody looks.
    """
    torch.set_num_threads(config.cluster.num_threads)
    settings, run = config.encoder, run_store(config)
    model = load_model(run)
    device = config.cluster.device
    torch.manual_seed(config.run.seed)
    encoder = place(model.architecture.encoder(), device)
    num_steps = max(1, round(settings.kimg * 1000 / settings.batch))
    training = EncoderTraining(
        encoder,
        place(model.generator, device),
        place(model.discriminator, device).features,
        lr=settings.lr,
        feature_weight=settings.feature_weight,
        num_steps=num_steps,
        seed=config.run.seed,
        stage=num_stages(model.architecture.resolution) - 1,
    )
    for step, real in enumerate(_batches(config, num_steps), start=1):
        terms = training.step(real.to(device))
        if board and step % _SAY_EVERY == 0:
            numbers = " ".join(f"{name} {float(term):.3f}" for name, term in terms.items())
            board.update.remote(step * settings.batch, "encoder", numbers)
    if not all(weight.isfinite().all() for weight in encoder.parameters()):
        raise UserError(f"the encoder diverged with encoder.lr={settings.lr}; lower it {_ALONE}")
    save_encoder(run, encoder)


def _batches(config: Config, count: int) -> Iterator[Tensor]:
    """Training images at full size, float [B, C, H, W] in [-1, 1]."""
    index, batch = load_index(dataset_store(config)), config.encoder.batch
    cache = open_cache(config)
    reader = open_split(config, cache, index, "train-normal", index.resolution, lanes=batch)
    part = Share(num_threads=config.data.loader_threads)
    stream = BatchStream(reader, None, batch=batch, part=part)
    try:
        for _ in range(count):
            yield normalise(stream.next_batch().normal)
    finally:
        stream.close()
