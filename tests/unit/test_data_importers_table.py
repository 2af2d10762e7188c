"""Tables of images."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data.errors import DataError
from data.importers import import_items, table
from data.item import ImportOptions, Item
from data.sample import encode_png
from data.store import Store

PLAIN = ImportOptions()
GREY = encode_png(np.full((4, 6, 1), 9, np.uint8))


def imported(root: Path, text: str, options: ImportOptions = PLAIN, **settings) -> list[Item]:
    (root / "parts.csv").write_text(text, encoding="utf-8")
    return import_items(str(root / "parts.csv"), "auto", options, **settings)


def test_all_columns_are_read(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for name in ("in/a.png", "in/m.png"):
        store.write_bytes(name, GREY)
    elsewhere = tmp_path / "other" / "b.png"
    store.write_bytes("other/b.png", GREY)
    text = (
        "\ufeffimage, label, mask, group, split, kind, operator\n"
        "in/a.png, Abnormal, in/m.png, part 1, test, scratch, Ann\n"
        f"{elsewhere}, normal,, part 2, train,, Bob\n"
        "s3://bucket/x/c.png,,,,,,\n"
        "in/d.png,abnormal,,,train,,\n"
        "in/e.png,unlabelled,,,train,,\n"
    )
    first, second, third, fourth, fifth = imported(tmp_path, text)
    assert (first.label, first.kind, first.group) == ("abnormal", "scratch", "part 1")
    assert (first.key, first.split) == ("in-a", "test")
    image, mask = first.read()
    assert image.shape == (4, 6, 1)
    assert mask is not None
    assert mask.all()
    assert (second.label, second.kind, second.split) == ("normal", "good", "train-normal")
    assert second.read()[1] is None
    assert third.source == "s3://bucket/x/c.png"
    assert (third.label, third.kind, third.split) == ("unlabelled", "unknown", None)
    assert (fourth.split, fourth.group) == ("train-abnormal", "in/d")
    assert (fifth.split, fifth.label) == ("train-normal", "unlabelled")


def test_parquet_is_the_same_as_csv(tmp_path: Path) -> None:
    rows = pd.DataFrame(
        {
            "image": ["a.png", "b.png"],
            "label": ["normal", None],
            "split": ["train", "test"],
        }
    )
    rows.to_parquet(tmp_path / "parts.parquet")
    rows.to_csv(tmp_path / "parts.csv", index=False)
    found = [
        import_items(str(tmp_path / name), "table", PLAIN)
        for name in ("parts.parquet", "parts.csv")
    ]
    shown = [[(i.key, i.label, i.split, i.group, i.source) for i in items] for items in found]
    assert shown[0] == shown[1]
    assert [item.label for item in found[0]] == ["normal", "unlabelled"]


def test_columns_may_have_other_names_and_kinds_give_labels(tmp_path: Path) -> None:
    text = "file,class,part\na.png,ok,1\nb.png,dent,2\n"
    columns = {"image": "file", "kind": "class", "group": "part"}
    options = ImportOptions(normal_kinds=("ok",))
    items = imported(tmp_path, text, options, columns=columns)
    assert [(i.label, i.kind, i.group) for i in items] == [
        ("normal", "ok", "1"),
        ("abnormal", "dent", "2"),
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", r"parts\.csv is empty"),
        ("image\n", "has no rows"),
        ("picture\na.png\n", r"no column 'image' for image; it has picture"),
        ("image,lable\na.png,normal\n", r"column 'lable'; if it is label"),
        ("image,image\na.png,b.png\n", r"column 'image' twice"),
        ("image,label\na.png,normal\nb.png,bad\n", r"row 2: label 'bad' is not one of normal"),
        ("image,split\na.png,holdout\n", r"row 1: split 'holdout' is not one of train, "),
        ("image,label\na.png,normal\n,normal\n", r"row 2 has no image"),
        ("image,label\na.png,normal\nb.png\n", r"row 2 has 1 values, the header 2"),
        ("image\na.png\nb.png\n./a.png\n", r"rows 1 and 3 have the same image"),
        ("image\n../a.png\n", r"row 1: image: .* goes up with `..`"),
        ("image\na\0.png\n", r"row 1: image: 'a.x00\.png' holds a NUL"),
        ("image\n/x\0/a.png\n", r"row 1: image: .* holds a NUL"),
        ("image\nhttp://x/a.png\n", r"row 1: image: .* is not supported"),
        ("image,label,split\na.png,abnormal,train-normal\n", r"abnormal cannot be in train-normal"),
        ("image,split\na.png,train-abnormal\n", r"unlabelled cannot be in train-abnormal"),
        ("image,group,split\na.png,1,train\nb.png,1,test\n", r"rows 1 and 2: group '1' is in"),
        *((f"image\n{name}\n", r"row 1: image: .* is a folder") for name in ("/", "./", ".", "a/")),
        ("image\ns3://bucket/\n", r"row 1: image: .* is a folder"),
    ],
)
def test_bad_tables_are_explained(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        imported(tmp_path, text)


def test_a_quote_that_is_not_closed_ends_with_the_table(tmp_path: Path) -> None:
    assert [item.key for item in imported(tmp_path, 'image\n"a.png')] == ["a"]


def test_a_damaged_page_of_a_parquet_file_is_told(tmp_path: Path) -> None:
    rows = pd.DataFrame({"image": [f"{number:05d}.png" for number in range(2000)]})
    rows.to_parquet(tmp_path / "parts.parquet", compression="snappy")
    whole, refused = (tmp_path / "parts.parquet").read_bytes(), 0
    for start in range(64, 2064, 100):
        damaged = whole[:start] + b"\xff" * 40 + whole[start + 40 :]
        (tmp_path / "parts.parquet").write_bytes(damaged)
        try:
            import_items(str(tmp_path / "parts.parquet"), "table", PLAIN)
        except DataError as error:
            refused += "no readable Parquet" in str(error)
    assert refused > 5


def test_a_misspelt_normal_kind_is_named(tmp_path: Path) -> None:
    options = ImportOptions(normal_kinds=("okay",))
    with pytest.raises(DataError, match=r"'okay', of which .* it has dent, ok"):
        imported(tmp_path, "image,kind\na.png,ok\nb.png,dent\n", options)


def test_files_that_are_no_tables_are_refused(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write_bytes("a.parquet", b"rubbish")
    store.write_bytes("a.csv", b"image\n\xff\xfe.png\n")
    store.write_bytes("a.xlsx", b"")
    for name, reason in (
        ("a.parquet", "no readable Parquet"),
        ("a.csv", "not UTF-8"),
        ("a.xlsx", "is no table"),
        ("none.csv", "no such object"),
    ):
        with pytest.raises(DataError, match=reason):
            table.items(store, PLAIN, table=name)
    with pytest.raises(DataError, match="columns has 'colour'"):
        imported(tmp_path, "image\na.png\n", columns={"colour": "x"})


def test_rows_of_a_part_may_differ_in_label_and_leave_the_split_open(tmp_path: Path) -> None:
    text = "image,label,group,split\na.png,normal,p,train\nb.png,abnormal,p,train\nc.png,,p,\n"
    items = imported(tmp_path, text)
    assert [item.split for item in items] == ["train-normal", "train-abnormal", None]
    with pytest.raises(DataError, match="rows 1 and 4: group 'p' is in train-normal and in test"):
        imported(tmp_path, text + "d.png,,p,test\n")


def test_one_file_under_two_names_is_found(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="rows 1 and 2 have the same image"):
        imported(tmp_path, f"image\nsub/a.png\n{tmp_path}/sub/a.png\n")
