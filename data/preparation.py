"""How a picture becomes what a model takes: recorded with the data set and with its models."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt

Mode = Literal["whole", "tiles"]
Resolution = Annotated[int, Field(ge=4, le=1024)]
Level = Annotated[int, Field(ge=0, le=65_535)]
ALL_LEVELS = (0, 65_535)


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
