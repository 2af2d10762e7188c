"""What `serve` and `export` can be told."""

from pydantic import Field

from cluster.section import Location, Section
from data.picture_header import MAX_PIXELS


class Serve(Section):
    """The endpoint that scores images over HTTP."""

    host: str = Field("127.0.0.1", min_length=1, max_length=255)
    """Interface it listens on; without a token a loopback one, on no cluster; a name or address."""
    port: int = Field(8000, ge=1, le=65_535)
    """Port it listens on, a number."""
    replicas: int = Field(1, ge=1, le=4096)
    """Copies of the model, each with cluster.cpus_per_worker and cluster.gpus_per_worker."""
    max_batch: int = Field(32, ge=1, le=4096)
    """Most images searched together by a replica, in images."""
    batch_wait_ms: float = Field(20.0, ge=0, le=60_000)
    """How long an image waits for others to be searched with it, in milliseconds."""
    max_queue: int = Field(64, ge=0, le=100_000)
    """Images that may wait beside those being searched; more are answered 429, in images."""
    answer_s: float = Field(300.0, gt=0, le=86_400)
    """Longest time from an image that is let in to its answer; then 503, in seconds."""
    max_bytes: int = Field(2**26, ge=1, le=2**31)
    """Largest image file that is read, in bytes."""
    max_pixels: int = Field(2**26, ge=16, le=MAX_PIXELS)
    """Largest image that is decoded, at 10 to 18 bytes of memory a pixel, in pixels."""
    token_env: str = Field("BLEMISH_TOKEN", pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,254}$")
    """Environment variable with the token that clients must send; unset or empty: none, a name."""


class Export(Section):
    """The model as MLflow takes it."""

    dir: Location = Field("", max_length=4096)
    """Folder it is written to, a path or s3:// URI; empty means <run.dir>/mlflow-model."""
