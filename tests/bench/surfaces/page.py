"""A page of examples: pictures, the truth, and the map of each row side by side.

`BLEMISH_IMAGES=../shared/images PYTHONPATH=. python tests/bench/surfaces/page.py` shows what
surfaces.py with the same options found and writes outputs/surfaces/examples.html, one file that
needs no other. Of the options it takes the first contamination, setting and seed.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cluster.pictures import overlay
from data.sample import Image8, Mask, encode_png
from tests.bench.surfaces.cells import Cell
from tests.bench.surfaces.crops import GOOD, KINDS, Picture, load_pictures
from tests.bench.surfaces.pretrained import OUTPUTS
from tests.bench.surfaces.surfaces import cells_of, kept_at, parse

_EACH = 3
"""Best and worst cases shown of each kind."""
_ENLARGE = 2
_TRUTH = (40, 220, 90)
_HIGH = 0.999


@dataclass(frozen=True, eq=False)
class Shown:
    """What one row said of the test pictures.

    Attributes:
        name: of the row.
        share: by picture, the share of good ones that score lower, 0..1.
        maps: by picture.
        low: value shown as no heat.
        high: value shown as full heat.
    """

    name: str
    share: dict[str, float]
    maps: dict[str, NDArray[np.floating]]
    low: float
    high: float


def shown(cell: Cell) -> Shown:
    """Read what surfaces.py kept of a cell."""
    with np.load(kept_at(cell)) as kept:
        found = {name: kept[name] for name in kept.files}
    values = found.pop("scores")
    scores = dict(zip(found, values.tolist(), strict=True))
    good = [name for name in scores if name.startswith(f"{GOOD}/")]
    normal = np.sort([scores[name] for name in good])
    places = np.searchsorted(normal, list(scores.values())) / len(normal)
    pixels = np.concatenate([found[name].ravel() for name in good])
    low, high = np.quantile(pixels, (0.5, _HIGH))
    share = dict(zip(scores, places.tolist(), strict=True))
    return Shown(cell.row, share, found, float(low), max(float(high), float(low) + 1e-9))


def sections(rows: Sequence[Shown], pictures: dict[str, Picture]) -> list[dict[str, Any]]:
    """Best and worst cases of each kind, and the worst good pictures."""
    names = list(rows[0].share)
    mean = {name: float(np.mean([row.share[name] for row in rows])) for name in names}
    found = []
    for kind in (*KINDS, GOOD):
        order = sorted((n for n in names if pictures[n].kind == kind), key=lambda name: mean[name])
        lowest = [] if kind == GOOD else _of_different_parts(order, pictures)
        rest = [name for name in reversed(order) if name not in lowest]
        highest = _of_different_parts(rest, pictures)
        chosen = {"lowest": lowest, "highest": highest}
        for which, cases in chosen.items():
            if cases:
                shown_cases = [_case(pictures[name], rows) for name in cases]
                found.append({"title": f"{kind}: {which} scores", "cases": shown_cases})
    return found


def _of_different_parts(names: Sequence[str], pictures: dict[str, Picture]) -> list[str]:
    """The first picture of each of the first parts."""
    first = {pictures[name].part: name for name in reversed(names)}
    return [name for name in names if first[pictures[name].part] == name][:_EACH]


def _case(picture: Picture, rows: Sequence[Shown]) -> dict[str, Any]:
    pixels = picture.pixels[: picture.height, : picture.width]
    mask = picture.mask[: picture.height, : picture.width]
    maps = []
    for row in rows:
        level = (row.maps[picture.name] - row.low) / (row.high - row.low)
        heat = _enlarged(overlay(pixels[:, :, None], level))
        maps.append({"image": _uri(heat), "share": row.share[picture.name]})
    plain = _enlarged(np.repeat(pixels[:, :, None], 3, axis=2))
    image = _uri(outlined(plain, _enlarged(mask)))
    return {"name": picture.name, "part": picture.part, "image": image, "maps": maps}


def outlined(image_HWC: Image8, mask: Mask) -> Image8:
    """The image with a line around what the mask marks, just outside of it."""
    around = ndimage.binary_dilation(mask, iterations=2) & ~ndimage.binary_dilation(mask)
    return np.where(around[:, :, None], np.array(_TRUTH, np.uint8), image_HWC)


def _enlarged(pixels: NDArray[Any]) -> NDArray[Any]:
    return pixels.repeat(_ENLARGE, axis=0).repeat(_ENLARGE, axis=1)


def _uri(image_HWC: Image8) -> str:
    return f"data:image/png;base64,{base64.b64encode(encode_png(image_HWC)).decode()}"


def render(cell: Cell, rows: Sequence[Shown], pictures: Sequence[Picture]) -> str:
    """The page.

    Args:
        cell: says which contamination and setting is shown.
        rows: what each row found there.
        pictures: all pictures of the study.
    """
    template = Path(__file__).with_name("page.html").read_text()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(template).render(
        title=f"Magnetic tiles, {cell.contamination:.0%} contamination, {cell.setting}",
        rows=[row.name for row in rows],
        sections=sections(rows, {picture.name: picture for picture in pictures}),
    )


def main() -> None:
    """Write the page of all rows that have run."""
    cells = cells_of(parse())
    first = cells[0]
    alike = [
        cell
        for cell in cells
        if (cell.contamination, cell.setting, cell.seed)
        == (first.contamination, first.setting, first.seed)
    ]
    rows = [shown(cell) for cell in alike if kept_at(cell).exists()]
    if not rows:
        raise SystemExit("none of these cells has run; run surfaces.py with the same options first")
    path = OUTPUTS / "examples.html"
    path.write_text(render(first, rows, load_pictures(first.intensity)))
    print(path)


if __name__ == "__main__":
    main()
