"""What `inspect` can be told."""

from pydantic import Field

from cluster.section import Location, Section
from data.sample import Split
from gan.thresholds import Rule


class Inspect(Section):
    """What is inspected and how the decision is made."""

    dir: Location = Field("", max_length=4096)
    """Output directory, not used to calibrate; empty means <run.dir>/inspection/<split>."""
    split: Split = "test"
    """Split of the data set to inspect; validation calibrates."""
    source: Location = Field("", max_length=4096)
    """Folder of images to inspect instead of the data set, a path or s3:// URI; empty: none."""
    unit_images: int = Field(16, ge=1, le=100_000)
    """Images of such a folder in one unit of work; an actor holds two units with their maps."""
    limit: int = Field(0, ge=0, le=1_000_000_000)
    """Inputs to inspect, in whole units; run again without it to go on; 0: all, in images."""
    dry_run: bool = False
    """Only print how many inputs there are and what inspecting them takes, and stop."""
    price_per_hour: float = Field(0.0, ge=0, le=1_000_000)
    """Price of one actor for the dry run, in your currency per hour; 0: not told."""
    threshold: Rule = "false_positive_rate"
    """Rule of the decision: false_positive_rate, best_f1, zero_escape or reject_band."""
    false_positive_rate: float = Field(0.05, gt=0, lt=1)
    """Share of normal images that may be called abnormal, fitted on validation, a fraction."""
    miss_rate: float = Field(0.0, ge=0, lt=1)
    """Share of defects a reject_band may call normal, a fraction; 0: no known one."""
    num_maps: int = Field(200, ge=0, le=10_000_000)
    """Images of each unit, at most, whose map and pictures are written, in images."""
