"""What every section of the configuration is made of."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

from data.store import Store

# Workers and trials have other working directories, so every path is made absolute here, once.
Location = Annotated[str, AfterValidator(lambda uri: uri and Store(uri).uri)]

PACKAGE = "package:"
"""Prefix of a location that names an installed Python package."""
WeightsLocation = Annotated[
    str, AfterValidator(lambda uri: uri if not uri or uri.startswith(PACKAGE) else Store(uri).uri)
]


class Section(BaseModel):
    """Base of every section: immutable, no unknown keys, no silent type changes of strings."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True
    )
