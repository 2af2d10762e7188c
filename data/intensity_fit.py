"""One intensity scale for a whole data set, fitted on its normal training pictures."""

import statistics
from dataclasses import replace

from pydantic import BaseModel, ConfigDict, ValidationError

from data.errors import DataError, StoreError
from data.intensity import centre_and_spread
from data.item import Item
from data.pack_records import INTENSITY_NAME
from data.plan import Plan
from data.preparation import Reference
from data.store import Store

MOST_PICTURES = 200
"""Pictures the scale is fitted on, the first ones in the seeded order of train-normal."""


class _Fit(BaseModel):
    """What was found for a plan; it lies beside the units' records for as long as they do."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    plan: str
    reference: Reference


def fitted(plan: Plan, store: Store | None = None) -> Plan:
    """Return a plan with the scale of its data set, where `intensity` is `dataset`.

    The scale is the median of the pictures' medians and the median of their standard deviations,
    so that a minority of abnormal pictures among the normal ones hardly moves it. A packing that is
    continued keeps the scale it began with.

    Args:
        plan: what is packed.
        store: where the scale is kept for a later run; None keeps it nowhere.

    Raises:
        StoreError: if the source cannot be reached or refuses.
        DataError: if there is no usable picture in train-normal.
    """
    if plan.settings.intensity != "dataset":
        return plan
    reference = _kept(plan, store) if store else None
    if reference is None:
        reference = _fit(plan)
        if store:
            found = _Fit(plan=plan.digest, reference=reference)
            store.write_bytes(INTENSITY_NAME, (found.model_dump_json() + "\n").encode())
    return replace(plan, settings=replace(plan.settings, intensity_reference=reference))


def _kept(plan: Plan, store: Store) -> Reference | None:
    if not store.exists(INTENSITY_NAME):
        return None
    try:
        found = _Fit.model_validate_json(store.read_bytes(INTENSITY_NAME))
    except ValidationError:
        return None
    return found.reference if found.plan == plan.digest else None


def _fit(plan: Plan) -> Reference:
    normal = [item for u in plan.units if u.split == "train-normal" for item in u.items]
    scales = [scale for item in normal[:MOST_PICTURES] if (scale := _scale(item))]
    if not scales:
        raise DataError(
            "pack.intensity=dataset is fitted on normal training pictures, and there is none that "
            "can be read; add some, or choose pack.intensity=image"
        )
    centre, spread = (statistics.median(part) for part in zip(*scales, strict=True))
    if not spread:
        raise DataError(
            f"pack.intensity=dataset needs contrast, and most of {len(scales)} normal training "
            "pictures have one value all over; choose pack.intensity=none"
        )
    return centre, spread


def _scale(item: Item) -> tuple[float, float] | None:
    """Return centre and spread of a picture; None for one that packing will quarantine."""
    try:
        return centre_and_spread(item.read()[0])
    except StoreError:
        raise
    except DataError:
        return None
