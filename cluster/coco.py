"""Regions as a COCO data set, which tools for labelling and for judging detections read."""

import io
import json
from collections.abc import Iterator
from typing import Any

import pyarrow.parquet

from cluster.inspection_files import REGIONS, finished_units, scores_path
from data.store import Store

_COLUMNS = ["key", "source", "height", "width", "regions"]
_CATEGORY = {"id": 1, "name": "anomaly", "supercategory": ""}


def write_regions(out: Store) -> None:
    """Write regions.json of all finished units, the same bytes whatever order they were done in.

    Rows pass by unit by unit; what is held is the file, twice at the end: some 100 bytes an image
    and 120 a region (tests/bench/evaluate.py).
    """
    images, annotations = [], []
    num_images = num_annotations = 0
    for unit in finished_units(out):
        of_images, of_regions = [], []
        for row in _rows(out, unit):
            num_images += 1
            of_images.append(_line(_image(num_images, row)))
            for region in row["regions"]:
                num_annotations += 1
                of_regions.append(_line(_annotation(num_annotations, num_images, region)))
        # A text for each line would take half as much again.
        images += [_joined(of_images)] if of_images else []
        annotations += [_joined(of_regions)] if of_regions else []
    head = json.dumps({"info": {"description": f"regions of {out.uri}"}, "licenses": []})[:-1]
    parts = [
        f'{head},\n"categories": [{json.dumps(_CATEGORY)}],\n"images": [\n'.encode(),
        _joined(images),
        b'],\n"annotations": [\n',
        _joined(annotations),
        b"]}\n",
    ]
    out.write_bytes(REGIONS, b"".join(parts))


def _rows(out: Store, unit: str) -> Iterator[dict[str, Any]]:
    payload = io.BytesIO(out.read_bytes(scores_path(unit)))
    yield from pyarrow.parquet.read_table(payload, columns=_COLUMNS).to_pylist()


def _image(number: int, row: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": number,
        "file_name": row["source"],
        "key": row["key"],
        "height": row["height"],
        "width": row["width"],
    }


def _annotation(number: int, image: int, region: dict[str, Any]) -> dict[str, Any]:
    # Identifiers begin at 1: COCO's own evaluation takes 0 for "no match".
    return {
        "id": number,
        "image_id": image,
        "category_id": _CATEGORY["id"],
        "bbox": [region["x"], region["y"], region["width"], region["height"]],
        "area": region["area"],
        "score": round(region["peak"], 4),
        "iscrowd": 0,
        "segmentation": [],
    }


def _joined(lines: list[bytes]) -> bytes:
    return b",\n".join(lines)


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode()
