"""What each cell of the study gives a detector: training crops, known defects, validation, test.

Half of the parts with abnormal training crops contaminate, the other half is known and labelled.
Contaminants are drawn from the crops at the usual stride; where those are too few for the share
that is asked for, crops of the same pictures between them follow (`_FINE_STRIDE`), never one twice.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.bench.surfaces.crops import (
    GOOD,
    KINDS,
    MIN_DEFECT_PIXELS,
    Crops,
    Intensity,
    Picture,
    Split,
    cut_between,
    cut_pictures,
    hash_of,
    load_pictures,
)

SEEN = "seen"
SETTINGS = (SEEN, *(f"unseen:{kind}" for kind in KINDS))
_FINE_STRIDE = 8

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Cell:
    """What decides a result.

    Attributes:
        row: name of the detector.
        contamination: abnormal share of the crops called normal.
        setting: `seen`, all kinds are labelled; or `unseen:<kind>`, that kind is not and is tested.
        seed: of the halves, of the contaminants and of the detector.
        intensity: how photographs are standardised.
        settings: what differs from the detector's own settings, by dotted path.
        version: `RESULT_VERSION` of the code that trains and judges; 0 where no GAN has a part.
    """

    row: str
    contamination: float
    setting: str
    seed: int
    intensity: Intensity
    settings: dict[str, Any]
    version: int = 0

    @property
    def hidden(self) -> str | None:
        """The kind that nobody has labelled."""
        return None if self.setting == SEEN else self.setting.partition(":")[2]


@dataclass(frozen=True, eq=False)
class CellData:
    """What a detector may see of a cell, and what it is tested on.

    Attributes:
        normal: training crops called normal, contaminants among them.
        is_contaminant: [N], for studies; no detector is told.
        known: crops labelled abnormal, with their masks.
        validation: labelled crops to choose by.
        validation_kinds: [V] `GOOD` or the kind of defect.
        test: all crops of the test pictures, of the tested kinds and of good ones.
    """

    normal: Crops
    is_contaminant: Bools
    known: Crops
    validation: Crops
    validation_kinds: NDArray[np.str_]
    test: Crops

    @property
    def validation_abnormal(self) -> Bools:
        """[V]."""
        return np.asarray(self.validation_kinds != GOOD)


class Surfaces:
    """All photographs and their crops.

    Args:
        pictures: the photographs.
    """

    def __init__(self, pictures: list[Picture]) -> None:
        self.pictures = pictures
        self.crops = cut_pictures(pictures)
        self.kinds = np.array([one.kind for one in pictures])
        self.parts = np.array([one.part for one in pictures])
        self._splits = np.array([one.split for one in pictures])

    @classmethod
    def load(cls, intensity: Intensity) -> "Surfaces":
        """From $BLEMISH_IMAGES."""
        return cls(load_pictures(intensity))

    @cached_property
    def _abnormal(self) -> Bools:
        return self.crops.num_defect_pixels >= MIN_DEFECT_PIXELS

    def labelled(self, split: Split, kinds: Iterable[str]) -> Crops:
        """The crops of a split that show one of some kinds, `GOOD` for normal ones."""
        return self.crops.take(self._labelled(split, kinds))

    def of_pictures(self, split: Split, kinds: Iterable[str]) -> Crops:
        """All crops of a split's pictures of some kinds, whatever they show."""
        return self.crops.take(self._of(split, kinds))

    def kinds_of(self, crops: Crops) -> NDArray[np.str_]:
        """[N] what each crop's picture shows."""
        return self.kinds[crops.picture]

    def data(self, cell: Cell) -> CellData:
        """What a cell gives to its detector."""
        kinds = [kind for kind in KINDS if kind != cell.hidden]
        tested = [cell.hidden] if cell.hidden else kinds
        good = self.labelled("train", [GOOD])
        contaminating, known = self._halves(cell.seed)
        share = cell.contamination
        added = self._drawn(contaminating, round(share / (1 - share) * len(good)), cell.seed)
        validation = self.labelled("validation", [GOOD, *kinds])
        is_known = np.isin(self.crops.picture, known) & self._labelled("train", kinds)
        return CellData(
            normal=Crops.join([good, added]),
            is_contaminant=np.repeat([False, True], [len(good), len(added)]),
            known=self.crops.take(is_known),
            validation=validation,
            validation_kinds=self.kinds_of(validation),
            test=self.of_pictures("test", [GOOD, *tested]),
        )

    def _of(self, split: Split, kinds: Iterable[str]) -> Bools:
        chosen = (self._splits == split) & np.isin(self.kinds, list(kinds))
        return np.asarray(chosen[self.crops.picture])

    def _labelled(self, split: Split, kinds: Iterable[str]) -> Bools:
        is_good = self.kinds[self.crops.picture] == GOOD
        return np.asarray(self._of(split, kinds) & (is_good | self._abnormal))

    def _halves(self, seed: int) -> tuple[list[int], list[int]]:
        """Defective training pictures: those that contaminate and those that are known.

        Kind by kind, a part after the other goes to the half that has fewer crops of that kind.
        """
        abnormal = self._labelled("train", KINDS)
        num_crops = np.bincount(self.crops.picture[abnormal], minlength=len(self.pictures))
        half_of: dict[str, int] = {}
        for kind in KINDS:
            chosen = (self.kinds == kind) & (num_crops > 0)
            totals = [0, 0]
            for part in sorted(set(self.parts[chosen]), key=lambda name: hash_of(f"{seed}/{name}")):
                half = half_of.setdefault(part, int(np.argmin(totals)))
                totals[half] += int(num_crops[chosen & (self.parts == part)].sum())
        found = [int(number) for number in np.flatnonzero(num_crops)]
        halves = [[n for n in found if half_of[self.parts[n]] == half] for half in (0, 1)]
        return halves[0], halves[1]

    def _drawn(self, pictures: list[int], count: int, seed: int) -> Crops:
        """So many abnormal crops of some pictures, in random order."""
        rng = np.random.default_rng(seed)
        usual = self.crops.take(np.isin(self.crops.picture, pictures) & self._abnormal)
        found = usual.take(rng.permutation(len(usual))[:count])
        if len(found) < count:
            between = cut_between(self.pictures, pictures, _FINE_STRIDE)
            between = between.take(between.num_defect_pixels >= MIN_DEFECT_PIXELS)
            more = between.take(rng.permutation(len(between))[: count - len(found)])
            found = Crops.join([found, more])
        if len(found) < count:
            raise ValueError(
                f"contamination asks for {count} abnormal crops, there are {len(found)}; lower it"
            )
        return found
