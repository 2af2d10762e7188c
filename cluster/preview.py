"""One page that shows what the network would see, before anything is packed."""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from cluster.page import fill
from data.dataset import DatasetIndex
from data.errors import DataError, StoreError
from data.intensity_fit import fitted
from data.item import Item, Picture
from data.pack import cut_picture, is_contaminant
from data.pack_records import packed_index
from data.plan import Plan, Unit
from data.sample import SPLITS, Image8, Mask, Sample, Split, encode_png
from data.shards import read_shard
from data.store import Store

PREVIEW = "preview.html"
IMAGES_PER_GROUP = 4
TILES_PER_IMAGE = 5

_OVERVIEW = 360
_SHOWN_SIDE = 256
_OUTLINE = (255, 92, 0, 255)
_TAKEN = (44, 123, 182)
_MIXED_IN = "abnormal, called normal"


@dataclass(frozen=True)
class Card:
    """One sample on the page."""

    sample: Sample
    image: str
    outline: str | None
    note: str

    @property
    def is_enlarged(self) -> bool:
        """Whether a screen shows the sample larger than it is."""
        return bool(self.sample.image.shape[1] < _SHOWN_SIDE)


@dataclass(frozen=True)
class Shown:
    """One source image on the page: its samples and, for tiles, where they lie."""

    key: str
    source: str
    kind: str
    size: str
    cards: list[Card]
    overview: str | None = None
    note: str = ""


@dataclass
class Group:
    """The images of one split that are called the same."""

    split: Split
    title: str
    total: int | None
    images: list[Shown] = field(default_factory=list)
    unusable: list[tuple[str, str]] = field(default_factory=list)


def write_preview(store: Store, plan: Plan) -> str:
    """Write preview.html beside the place of dataset.json; returns its location.

    It shows samples out of the packed set if just this plan is packed there, else a few images
    per split and label, read from the source and cut as packing would.

    Raises:
        StoreError: If source or destination cannot be reached or refuses.
    """
    index = packed_index(store, plan)
    groups = list(_packed_groups(store, index) if index else _planned_groups(fitted(plan)))
    html = fill(
        PREVIEW,
        settings=plan.settings,
        num_images=plan.num_items,
        is_packed=index is not None,
        destination=store.uri,
        splits=[(split, list(part)) for split, part in groupby(groups, key=lambda g: g.split)],
        missing=[split for split in SPLITS if split not in {g.split for g in groups}],
        unusable=[row for group in groups for row in group.unusable],
    )
    store.write_bytes(PREVIEW, html.encode("utf-8", "replace"))
    return store.url(PREVIEW)


def _planned_groups(plan: Plan) -> Iterator[Group]:
    for (split, title), members in _grouped(plan.units).items():
        group = Group(split, title, len(members))
        for unit, item in members[: 3 * IMAGES_PER_GROUP]:
            if len(group.images) == IMAGES_PER_GROUP:
                break
            try:
                group.images.append(_shown(unit, item, plan))
            except StoreError:
                raise
            except DataError as error:
                group.unusable.append((item.source, str(error)))
        yield group


def _grouped(units: Sequence[Unit]) -> dict[tuple[Split, str], list[tuple[Unit, Item]]]:
    """Return the images by split and what they are called, in the order of the page."""
    found: dict[tuple[Split, str], list[tuple[Unit, Item]]] = {}
    for unit in units:
        for item in unit.items:
            title = _MIXED_IN if item.key in unit.contaminants else item.label
            found.setdefault((unit.split, title), []).append((unit, item))
    # Normal first, as people compare the others with it.
    order = ("normal", _MIXED_IN, "abnormal", "unlabelled")
    return dict(sorted(found.items(), key=lambda x: (SPLITS.index(x[0][0]), order.index(x[0][1]))))


def _shown(unit: Unit, item: Item, plan: Plan) -> Shown:
    picture = item.read()
    image, mask = picture
    contaminates = is_contaminant(item, mask, unit)
    samples = cut_picture(item, picture, plan.settings, is_contaminant=contaminates)
    height, width, channels = image.shape
    shown = _telling(samples)
    is_tiled = plan.settings.mode == "tiles"
    return Shown(
        key=item.key,
        source=item.source,
        kind=item.kind,
        size=f"{width} × {height} px, {'grey' if channels == 1 else 'RGB'}",
        cards=[_card(sample, mask) for sample in shown],
        overview=_overview(picture, samples, plan.settings.resolution) if is_tiled else None,
        note=f"{len(samples)} tiles, {len(shown)} shown" if is_tiled else "",
    )


def _telling(samples: list[Sample]) -> list[Sample]:
    """Return the samples with the most defect pixels; without any, some from all over the image."""
    defects = [sample for sample in samples if _num_defect_pixels(sample.mask)]
    defects.sort(key=lambda sample: -_num_defect_pixels(sample.mask))
    others = [sample for sample in samples if not _num_defect_pixels(sample.mask)]
    room = min(max(TILES_PER_IMAGE - len(defects), 0), len(others))
    spread = [others[(2 * i + 1) * len(others) // (2 * room)] for i in range(room)]
    return defects[:TILES_PER_IMAGE] + spread


def _packed_groups(store: Store, index: DatasetIndex) -> Iterator[Group]:
    """Return the samples of the first shard of each split that has one."""
    for split in SPLITS:
        shards = index.shards_of(split)
        if not shards:
            continue
        samples = read_shard(store.read_bytes(shards[0].path), shards[0]).samples
        for label in sorted({sample.label for sample in samples}, reverse=True):
            group = Group(split, label, index.labels[split].get(label))
            chosen = [sample for sample in samples if sample.label == label]
            group.images = [_packed(sample) for sample in chosen[: 2 * IMAGES_PER_GROUP]]
            yield group


def _packed(sample: Sample) -> Shown:
    size = "resized"
    if tile := sample.tile:
        size = f"tile at x {tile.x}, y {tile.y} of {tile.width} × {tile.height} px"
    return Shown(sample.key, sample.source, sample.kind, size, [_card(sample, None)])


def _card(sample: Sample, native: Mask | None) -> Card:
    return Card(
        sample=sample,
        image=_data_uri(encode_png(sample.image)),
        outline=_outline(sample.mask),
        note=_defect_note(sample, native),
    )


def _defect_note(sample: Sample, native: Mask | None) -> str:
    """Say how many defect pixels the network sees, and how many there were."""
    if sample.mask is None:
        return "no mask"
    num = _num_defect_pixels(sample.mask)
    if sample.tile or native is None or native.shape == sample.mask.shape:
        return f"{num:,} defect px"
    return f"{num:,} defect px, were {_num_defect_pixels(native):,}"


def _num_defect_pixels(mask: Mask | None) -> int:
    return 0 if mask is None else int(np.count_nonzero(mask))


def _outline(mask: Mask | None) -> str | None:
    """Return a transparent picture of the lines just outside the mask."""
    if mask is None or not mask.any():
        return None
    factor = max(1, -(-2 * _SHOWN_SIDE // mask.shape[0]))
    large = np.kron(mask, np.ones((factor, factor), dtype=np.bool_))
    lines = _grown(_grown(large)) & ~large
    pixels = np.zeros((*large.shape, 4), dtype=np.uint8)
    pixels[lines] = _OUTLINE
    return _png_uri(Image.fromarray(pixels))


def _grown(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return a mask that is one pixel wider on all sides."""
    padded = np.pad(mask, 1)
    rows = padded[:-2] | padded[1:-1] | padded[2:]
    grown: NDArray[np.bool_] = rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]
    return grown


def _overview(picture: Picture, samples: Sequence[Sample], side: int) -> str:
    """Return the whole image, small, with the tiles that are taken."""
    image, _ = picture
    scale = min(1.0, _OVERVIEW / max(image.shape[:2]))
    small = _as_picture(image).convert("RGB")
    small = small.resize(
        (max(1, round(small.width * scale)), max(1, round(small.height * scale))),
        Image.Resampling.BOX,
    )
    draw = ImageDraw.Draw(small)
    for sample in sorted(samples, key=lambda each: each.label == "abnormal"):
        assert sample.tile
        x, y = sample.tile.x * scale, sample.tile.y * scale
        colour = _OUTLINE[:3] if sample.label == "abnormal" else _TAKEN
        draw.rectangle((x, y, x + side * scale - 1, y + side * scale - 1), outline=colour)
    return _png_uri(small)


def _as_picture(image: Image8) -> Image.Image:
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def _png_uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return _data_uri(buffer.getvalue())


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
