"""regions.json: what pycocotools builds its index from, and nothing lost on the way."""

import json
from pathlib import Path

import pytest

from cluster.coco import write_regions
from cluster.inspection_files import REGIONS, read_scores, write_unit
from data.store import Store
from tests.inspection_fixture import write_inspection


def test_regions_of_every_image_in_the_form_that_tools_read(tmp_path: Path) -> None:
    out = Store(str(tmp_path))
    write_inspection(out, num_images=45)
    write_regions(out)
    coco = json.loads(out.read_bytes(REGIONS))
    _check_as_pycocotools_does(coco)
    table = read_scores(out)
    by_key = {image["key"]: image for image in coco["images"]}
    assert set(by_key) == set(table["key"])
    assert 0 < len(coco["annotations"]) == sum(map(len, table["regions"]))
    for row in table.to_dict("records"):
        image = by_key[row["key"]]
        assert (image["file_name"], image["height"]) == (row["source"], row["height"])
        boxes = [a["bbox"] for a in coco["annotations"] if a["image_id"] == image["id"]]
        assert boxes == [[r["x"], r["y"], r["width"], r["height"]] for r in row["regions"]]
    told = [(a["area"], a["score"]) for a in coco["annotations"]]
    regions = [region for row in table["regions"] for region in row]
    assert told == [(r["area"], pytest.approx(r["peak"], abs=1e-4)) for r in regions]


def _check_as_pycocotools_does(coco: dict) -> None:
    """What COCO.createIndex, loadRes and COCOeval take for granted."""
    images = {image["id"]: image for image in coco["images"]}
    annotations = {annotation["id"]: annotation for annotation in coco["annotations"]}
    assert len(images) == len(coco["images"])
    assert len(annotations) == len(coco["annotations"])
    assert 0 not in annotations, "COCOeval takes 0 for no match"
    categories = {category["id"] for category in coco["categories"]}
    for annotation in annotations.values():
        image = images[annotation["image_id"]]
        assert annotation["category_id"] in categories
        x, y, width, height = annotation["bbox"]
        assert 0 <= x < x + width <= image["width"]
        assert 0 <= y < y + height <= image["height"]
        assert 0 < annotation["area"] <= width * height
        assert annotation["iscrowd"] == 0
        assert isinstance(annotation["segmentation"], list)
        assert isinstance(annotation["score"], float)


@pytest.mark.parametrize("rows", [0, 2])
def test_no_region_and_no_image_are_valid_too(tmp_path: Path, rows: int) -> None:
    out = Store(str(tmp_path))
    quiet = write_inspection(out, num_images=3).assign(regions=[[]] * 3).to_dict("records")
    for path in out.list("scores/"):
        out.delete(path)
    write_unit(out, "one", quiet[:rows], [])
    write_regions(out)
    coco = json.loads(out.read_bytes(REGIONS))
    _check_as_pycocotools_does(coco)
    assert (len(coco["images"]), coco["annotations"]) == (rows, [])
