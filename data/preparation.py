"""How a picture becomes what a model takes: recorded with the data set and with its models."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, model_validator

Mode = Literal["whole", "tiles"]
Resolution = Annotated[int, Field(ge=4, le=1024)]
Level = Annotated[int, Field(ge=0, le=65_535)]
ALL_LEVELS = (0, 65_535)
Intensity = Literal["none", "image", "dataset"]
"""Whose brightness and contrast become the standard ones, see `data.intensity`."""
Reference = tuple[float, PositiveFloat]
"""Centre and spread of the values of a data set, on the scale 0..255."""


class Preparation(BaseModel):
    """What was done to each picture when it was packed, and is done again before an inspection."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    resolution: Resolution = Field(description="side of a sample, pixels")
    channels: Literal[1, 3] = Field(description="1 grey, 3 RGB")
    mode: Mode = Field(
        default="whole", description="samples are whole images, resized, or tiles at native scale"
    )
    tile_overlap: NonNegativeInt = Field(
        default=0, description="least overlap of neighbouring tiles, pixels"
    )
    levels: tuple[Level, Level] = Field(
        default=ALL_LEVELS, description="values of a 16-bit image that became 0 and 255"
    )
    intensity: Intensity = Field(
        default="none", description="scale taken out of each picture: its own or the data set's"
    )
    intensity_reference: Reference | None = Field(
        default=None, description="centre and spread of the data set where that is its scale"
    )

    @model_validator(mode="after")
    def _has_its_reference(self) -> "Preparation":
        if (self.intensity == "dataset") != (self.intensity_reference is not None):
            raise ValueError(
                f"intensity={self.intensity} with intensity_reference={self.intensity_reference}: "
                "dataset needs one, and nothing else has one"
            )
        return self
