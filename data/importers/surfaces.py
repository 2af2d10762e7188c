"""A whole data set of synthetic surfaces; each is rendered when it is read."""

from functools import partial

import numpy as np

from data.importers.mnist import contaminants_for
from data.item import Item, Picture
from data.sample import Label, Split
from data.synthetic import Defect, machined_surface


def synthetic_surfaces(
    *,
    resolution: int,
    seed: int,
    contamination: float = 0.2,
    num_train_normal: int = 200,
    num_train_abnormal: int = 60,
    num_validation: int = 80,
    num_test: int = 120,
) -> list[Item]:
    """Return a data set of surfaces, for tests and for people with no images of their own.

    Half of validation and of test is defective. Defective images alternate between scratches
    and pits.

    Args:
        resolution: image side, pixels.
        seed: seed of everything.
        contamination: fraction of train-normal that is defective though called normal, 0..1.
        num_train_normal: number of really normal images in train-normal; contaminants come on top.
        num_train_abnormal: size of train-abnormal.
        num_validation: size of validation.
        num_test: size of test.

    Raises:
        DataError: if `contamination` is out of range.
    """
    plan: list[tuple[Split, bool, int]] = [
        ("train-normal", False, num_train_normal),
        ("train-normal", True, contaminants_for(num_train_normal, contamination)),
        ("train-abnormal", True, num_train_abnormal),
        ("validation", False, num_validation - num_validation // 2),
        ("validation", True, num_validation // 2),
        ("test", False, num_test - num_test // 2),
        ("test", True, num_test // 2),
    ]
    places = [(split, bad, i) for split, bad, count in plan for i in range(count)]
    result = []
    for number, (split, has_defect, ordinal) in enumerate(places):
        defect: Defect = "pit" if ordinal % 2 else "scratch"
        label: Label = "abnormal" if has_defect and split != "train-normal" else "normal"
        name = f"surface-{number:06d}"
        item = Item(
            key=name,
            read=partial(_render, seed, number, resolution, has_defect, defect),
            label=label,
            kind=defect if has_defect else "good",
            group=name,
            source=f"synthetic surface, seed {seed}, number {number}",
            split=split,
        )
        result.append(item)
    return result


def _render(seed: int, number: int, resolution: int, has_defect: bool, kind: Defect) -> Picture:
    # One seed per image of the set; sets of neighbouring seeds share no image.
    key = int(np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0])
    return machined_surface(key, resolution, resolution, defect=has_defect, kinds=[kind])
