"""Splits, contamination, units and the digest of a plan."""

import random
from dataclasses import replace
from functools import partial

import pytest

from data.errors import DataError
from data.item import Item
from data.plan import (
    PackSettings,
    Unit,
    assign_splits,
    call_abnormal,
    contaminate,
    make_plan,
    units,
)
from data.sample import Label, Split

FRACTIONS = (0.6, 0.12, 0.28)
SETTINGS = PackSettings(name="n", resolution=8, seed=0, shard_samples=4)


def _nothing(*_: object) -> None:
    raise AssertionError("a plan reads no image")


def _item(
    number: int,
    label: Label = "normal",
    split: Split | None = None,
    group: str | None = None,
    file: str = "",
) -> Item:
    key = f"i{number:04d}"
    read = partial(_nothing, file or key)
    return Item(key, read, label, "good", group or f"g{number}", f"at {key}", split)


def _sides(items: list[Item]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for item in items:
        assert item.split
        side = "train" if item.split.startswith("train") else item.split
        found.setdefault(item.group, set()).add(side)
    return found


def test_splits_have_the_asked_shares_and_follow_the_label() -> None:
    normal = assign_splits([_item(n) for n in range(3000)], 0, FRACTIONS)
    abnormal = assign_splits([_item(n, "abnormal") for n in range(3000)], 0, FRACTIONS)
    share = {s: sum(i.split == s for i in normal) / 3000 for s in ("train-normal", "validation")}
    assert share == pytest.approx({"train-normal": 0.6, "validation": 0.12}, abs=0.03)
    known = sum(item.split == "train-abnormal" for item in abnormal) / 3000
    assert known == pytest.approx(0.3, abs=0.03)
    assert not any(item.split == "train-abnormal" for item in normal)
    assert not any(item.split == "train-normal" for item in abnormal)


def test_groups_never_cross_training_validation_and_test() -> None:
    labels: list[Label] = ["normal", "abnormal", "normal"]
    items = [_item(n, labels[n % 3], group=f"part-{n % 200}") for n in range(1000)]
    sides = _sides(assign_splits(items, 0, FRACTIONS))
    assert len(sides) == 200
    assert all(len(found) == 1 for found in sides.values())
    assert {next(iter(found)) for found in sides.values()} == {"train", "validation", "test"}


def test_images_added_later_move_no_others_and_the_order_does_not_matter() -> None:
    items = [_item(n) for n in range(50)]
    before = {item.key: item.split for item in assign_splits(items[:40], 3, FRACTIONS)}
    random.Random(1).shuffle(items)
    after = {item.key: item.split for item in assign_splits(items, 3, FRACTIONS)}
    assert {key: after[key] for key in before} == before
    other = {item.key: item.split for item in assign_splits(items, 4, FRACTIONS)}
    assert other != after


def test_images_join_the_split_their_group_has_already() -> None:
    items = [_item(n, split="validation", group=f"p{n}") for n in range(20)]
    items += [_item(n + 20, group=f"p{n}") for n in range(20)]
    assert {item.split for item in assign_splits(items, 0, FRACTIONS)} == {"validation"}


def test_unlabelled_images_are_for_the_test_only() -> None:
    items = [_item(n, "unlabelled" if n % 2 else "normal", group=f"p{n // 2}") for n in range(40)]
    assert {item.split for item in assign_splits(items, 0, FRACTIONS)} == {"test"}


@pytest.mark.parametrize("fractions", [(0.5, 0.2, 0.2), (1.2, -0.2, 0.0)])
def test_wrong_fractions_are_refused(fractions: tuple[float, float, float]) -> None:
    with pytest.raises(DataError, match="must be non-negative and sum to 1"):
        assign_splits([_item(0)], 0, fractions)


def test_group_given_in_two_splits_is_refused_but_both_training_halves_are_one() -> None:
    both = [_item(0, split="train-normal", group="p"), _item(1, split="test", group="p")]
    for refused in (lambda: assign_splits(both, 0, FRACTIONS), lambda: make_plan(both, SETTINGS)):
        with pytest.raises(DataError, match=r"group p is in two splits, .*at i0000.*at i0001"):
            refused()
    halves = [both[0], _item(1, "abnormal", "train-abnormal", "p")]
    assert make_plan(halves, SETTINGS).num_items == 2


def _mixable(num_abnormal: int = 60, per_group: int = 1) -> list[Item]:
    normal = [_item(n, split="train-normal") for n in range(80)]
    numbers = range(100, 100 + num_abnormal)
    return normal + [
        _item(n, "abnormal", "train-abnormal", f"a{(n - 100) // per_group}") for n in numbers
    ]


def test_contamination_is_the_share_of_train_normal() -> None:
    items = _mixable()
    mixed = contaminate(items, 0.2, seed=0)
    normal = [item for item in mixed if item.split == "train-normal"]
    moved = [item for item in normal if item.key >= "i0100"]
    assert len(moved) / len(normal) == 0.2
    assert {item.label for item in moved} == {"normal"}
    assert [item.key for item in mixed] == [item.key for item in items]
    assert contaminate(items[::-1], 0.2, seed=0)[::-1] == mixed
    assert contaminate(items, 0.2, seed=1) != mixed
    assert contaminate(items, 0.0, seed=0) == items


def test_contamination_moves_whole_groups() -> None:
    mixed = contaminate(_mixable(per_group=3), 0.2, seed=0)
    splits: dict[str, set[str | None]] = {}
    for item in mixed:
        splits.setdefault(item.group, set()).add(item.split)
    assert all(len(found) == 1 for found in splits.values())
    normal = [item for item in mixed if item.split == "train-normal"]
    assert len(normal) - 80 in (19, 20, 21)


def test_contamination_that_cannot_be_is_refused() -> None:
    with pytest.raises(DataError, match=r"needs 80 abnormal ones, train-abnormal has 60"):
        contaminate(_mixable(), 0.5, seed=0)
    with pytest.raises(DataError, match=r"contamination=1 is not in \[0, 1\)"):
        contaminate(_mixable(), 1, seed=0)


def test_images_found_abnormal_stay_on_their_side() -> None:
    scratch = replace(_item(4, "abnormal", "train-abnormal"), kind="scratch")
    items = [
        _item(0, split="train-normal"),
        _item(1, split="train-normal"),
        _item(2, split="test"),
        replace(_item(3, split="train-normal"), kind="scratch"),
        scratch,
    ]
    called = call_abnormal(items, [item.source for item in items[1:]])
    assert called[0] == items[0]
    told = [(item.label, item.kind, item.split) for item in called[1:]]
    assert told == [
        ("abnormal", "found", "train-abnormal"),
        ("abnormal", "found", "test"),
        ("abnormal", "scratch", "train-abnormal"),
        ("abnormal", "scratch", "train-abnormal"),
    ]
    with pytest.raises(DataError, match=r"1 of the 2 images .* not among the 5 .* at x"):
        call_abnormal(items, [items[0].source, "at x"])


def test_units_are_runs_of_one_shuffled_split() -> None:
    items = [_item(n, split="test" if n % 3 == 0 else "train-normal") for n in range(30)]
    cut = units(items, 0, 4)
    assert [unit.name for unit in cut[:3]] == [f"train-normal-0000{n}" for n in range(3)]
    assert [len(unit.items) for unit in cut] == [4, 4, 4, 4, 4, 4, 4, 2]
    assert all({item.split for item in unit.items} == {unit.split} for unit in cut)
    assert sorted(i.key for unit in cut for i in unit.items) == [item.key for item in items]
    order = [item.key for unit in cut for item in unit.items]
    assert order != sorted(order)
    assert [i.key for unit in units(items, 1, 4) for i in unit.items] != order


def _keys(cut: tuple[Unit, ...]) -> list[list[str]]:
    return [[item.key for item in unit.items] for unit in cut]


def test_plan_depends_on_what_is_packed_and_not_on_the_order() -> None:
    items = [_item(n, split="test") for n in range(20)]
    plan = make_plan(items, SETTINGS)
    shuffled = make_plan(random.Random(1).sample(items, 20), SETTINGS)
    assert (plan.digest, _keys(plan.units)) == (shuffled.digest, _keys(shuffled.units))
    others = [
        make_plan(items[1:], SETTINGS),
        make_plan([replace(items[0], kind="bad"), *items[1:]], SETTINGS),
        make_plan([_item(0, split="test", file="elsewhere"), *items[1:]], SETTINGS),
        make_plan(items, replace(SETTINGS, min_defect_pixels=9)),
        make_plan(items, SETTINGS, contaminants=["i0003"]),
    ]
    assert len({plan.digest, *(other.digest for other in others)}) == 6


def test_contaminants_are_told_to_their_units() -> None:
    items = [_item(n, split="train-normal") for n in range(20)]
    plan = make_plan(items, SETTINGS, contaminants=["i0003", "i0004"])
    for unit in plan.units:
        told = {item.key for item in unit.items} & {"i0003", "i0004"}
        assert unit.contaminants == told


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"resolution": 12}, "resolution=12 is not a power of two"),
        ({"resolution": 2048}, "resolution=2048"),
        ({"shard_samples": 0}, "shard_samples=0"),
        ({"tile_overlap": 8}, r"tile_overlap=8 is not in 0\.\.7"),
        ({"min_defect_pixels": 0}, "min_defect_pixels=0"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, int], told: str) -> None:
    with pytest.raises(DataError, match=told):
        replace(SETTINGS, **change)


def test_empty_and_double_items_are_refused() -> None:
    with pytest.raises(DataError, match="data set is empty"):
        make_plan([], SETTINGS)
    with pytest.raises(DataError, match="key i0001 appears twice"):
        make_plan([_item(1, split="test"), _item(1, split="test")], SETTINGS)
