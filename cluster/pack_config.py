"""What `pack` can be told."""

from typing import Literal

from pydantic import Field, model_validator

from cluster.section import Section
from data.importers import Format
from data.preparation import Intensity

DIGITS = "digits"
SURFACES = "surfaces"
BUILT_IN = (DIGITS, SURFACES)


class Pack(Section):
    """What is packed into data.uri, at networks.resolution, in an order drawn from run.seed."""

    source: str = Field("surfaces", min_length=1, max_length=4096)
    """`digits` (the demo's), `surfaces` (synthetic), or a folder or table: a path or s3:// URI."""
    format: Format = "auto"
    """Layout of the source; auto looks at the names of the files."""
    mode: Literal["whole", "tiles"] = "whole"
    """Resize each image to the resolution, or cut it into tiles of that side at native scale."""
    tile_overlap: float = Field(0.25, ge=0, le=0.75)
    """Least overlap of neighbouring tiles, as a fraction of their side."""
    min_defect_pixels: int = Field(4, ge=1, le=1_048_576)
    """Defect pixels of the mask that make a tile abnormal, in pixels."""
    channels: Literal[1, 3] | None = None
    """Convert all images to grey (1) or RGB (3); null keeps what they are, which must be one."""
    black_level: int = Field(0, ge=0, le=65_534)
    """Raw value of a 16-bit image that becomes 0."""
    white_level: int = Field(65_535, ge=1, le=65_535)
    """Raw value of a 16-bit image that becomes 255."""
    intensity: Intensity = "none"
    """Scale of brightness and contrast taken out of each image: none, its own or the data set's."""
    contamination: float | None = Field(None, ge=0, lt=1)
    """Abnormal share of train-normal made on purpose, a fraction; null: 0.2 if built in, else 0."""
    abnormal_list: str = Field("", max_length=4096)
    """A CSV file whose column source names images found abnormal, such as lines of suspects.csv."""
    normal_kinds: tuple[str, ...] = Field((), max_length=10_000)
    """Classes that are normal; empty means what the layout says, such as good or normal."""
    num_inliers: int = Field(1, ge=1, le=256)
    """Normal categories of format caltech256, in categories."""
    labelled_fraction: float = Field(0.0, ge=0, le=1)
    """Share of the defects of format mvtec known before the test, a fraction."""
    train_fraction: float = Field(0.6, ge=0, le=1)
    """Share of the groups that train, where the source has no splits, a fraction."""
    validation_fraction: float = Field(0.12, ge=0, le=1)
    """Share of the groups that validate, where the source has no splits; the rest tests."""
    shard_samples: int = Field(64, ge=1, le=1_000_000)
    """Images in one unit of work, and samples in one shard, in images."""
    replace: bool = False
    """Pack over another finished data set that lies at data.uri."""
    preview: bool = False
    """Only write a page of what the network would see, preview.html, and stop."""

    @model_validator(mode="after")
    def _fits(self) -> "Pack":
        if self.train_fraction + self.validation_fraction > 1:
            raise ValueError(
                f"train_fraction={self.train_fraction} and validation_fraction="
                f"{self.validation_fraction} must not exceed 1 together; the rest is for the test"
            )
        if self.abnormal_list and self.source in BUILT_IN:
            raise ValueError(
                f"abnormal_list corrects a source of your own, and source={self.source} knows its "
                "own contamination; leave one out"
            )
        if self.abnormal_list and self.mode == "tiles":
            raise ValueError(
                "abnormal_list calls whole pictures abnormal, which mode=tiles would do with every "
                "tile of theirs; give these pictures masks of their defects instead"
            )
        if self.black_level >= self.white_level:
            raise ValueError(
                f"black_level={self.black_level} must be below white_level={self.white_level}"
            )
        return self
