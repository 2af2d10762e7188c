"""Images as they lie in a folder or bucket, or come one by one, inspected without being packed."""

from data.errors import DataError, StoreError, memory_error
from data.formats import read_picture
from data.importers.files import file_item, is_image, keys_for
from data.item import ImportOptions, Item, unique_keys
from data.pack import cut_picture
from data.picture_header import MAX_PIXELS, read_header
from data.plan import PackSettings, Unit, units
from data.preparation import Preparation
from data.sample import Sample
from data.shards import Damage, ShardContents
from data.store import Store

KIND = "unknown"


def plain_units(
    store: Store, preparation: Preparation, *, unit_images: int
) -> tuple[list[Unit], list[str]]:
    """Find all images at any depth and share them out; reads none of them.

    The units come in a random order that depends on the names alone, so that the first ones are
    a fair sample.

    Args:
        store: the folder.
        preparation: how the model's own images were prepared.
        unit_images: images of a unit.

    Returns:
        The units, and the names of the files that are hidden or no images by their names.

    Raises:
        DataError: if there is no image.
    """
    names = store.list()
    images = [name for name in names if is_image(name)]
    if not images:
        found = ", ".join(names[:5]) or "nothing"
        raise DataError(
            f"{store.uri} holds no image by its name (found {found}); allowed are .png, .jpg, "
            ".jpeg, .bmp, .webp, .tif and .tiff"
        )
    options = ImportOptions(channels=preparation.channels, levels=preparation.levels)
    items = [
        file_item((store, name), options, key=key, label="unlabelled", kind=KIND, split="test")
        for name, key in zip(images, keys_for(images), strict=True)
    ]
    others = [name for name in names if not is_image(name)]
    return units(unique_keys(items), seed=0, shard_samples=unit_images), others


def read_plain(unit: Unit, preparation: Preparation) -> ShardContents:
    """Read and prepare each image of a unit; one that cannot be used is accounted for.

    Raises:
        StoreError: if the store does not answer or refuses: that says nothing about an image.
    """
    settings = _settings(preparation)
    samples, damage = [], []
    for item in unit.items:
        try:
            samples += cut_picture(item, item.read(), settings)
        except StoreError:
            raise
        except MemoryError as error:
            raise memory_error(item.source) from error
        except DataError as error:
            damage.append(Damage(item.key, str(error), item.source))
    return ShardContents(samples, damage, checksum_ok=True)


def prepare_picture(
    payload: bytes, key: str, preparation: Preparation, *, max_pixels: int = MAX_PIXELS
) -> list[Sample]:
    """Return the samples of an image that comes alone: itself, resized, or its tiles.

    Args:
        payload: bytes of an image file.
        key: key of the image, 1-60 of `A-Za-z0-9_-`.
        preparation: how the model's own images were prepared.
        max_pixels: most pixels it may have.

    Raises:
        DataError: if the image cannot be used, with the reason.
    """
    header = read_header(payload)
    if header.height * header.width > max_pixels:
        raise DataError(
            f"the image is {header.height}x{header.width}, allowed are {max_pixels} pixels; "
            "cut it into parts"
        )
    options = ImportOptions(channels=preparation.channels, levels=preparation.levels)
    picture = read_picture(payload, options), None
    item = Item(key, lambda: picture, "unlabelled", KIND, group=key, source=key, split="test")
    return cut_picture(item, picture, _settings(preparation))


def _settings(preparation: Preparation) -> PackSettings:
    return PackSettings(name="", seed=0, **dict(preparation))
