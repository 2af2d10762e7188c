"""WebDataset shards that others wrote: tar files in which members share a stem."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

from data.dataset import INDEX_NAME, load_index
from data.errors import DataError
from data.formats import read_mask, read_picture
from data.importers.files import IMAGE_SUFFIXES, KINDS, LABELS, is_hidden, split_named
from data.importers.tar_headers import Member, TarFile, members
from data.item import ImportOptions, Item, Picture, key_of, unique_keys
from data.sample import Label
from data.store import Store

_IMAGE_MEMBERS = tuple(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
_MASK_MEMBER = "mask.png"
_SMALL_BYTES = 2**16

_Span = tuple[int, int]


@dataclass
class _Parts:
    """The members of one sample by extension, and the first thing wrong with them."""

    members: dict[str, Member] = field(default_factory=dict)
    fault: str = ""


def items(
    store: Store, options: ImportOptions, *, names: Sequence[str] | None = None
) -> list[Item]:
    """Find the samples of all `*.tar` files in a folder, without reading their images.

    A sample is `<key>.png` (or jpg, jpeg, webp, bmp, tif, tiff) and, where there, `<key>.json`,
    `<key>.cls` and `<key>.mask.png`. The json may have `label` (normal, abnormal, unlabelled; any
    other value is taken for the kind), `kind`, `group` and `split` (one of ours, or `train`). The
    cls is the number of a class, and becomes the kind. Where no label is given, kinds in
    `options.normal_kinds` are normal and, if that names any, all others abnormal.

    Samples that are damaged become items whose `read` says what is wrong, so none is lost
    silently. If the folder is a data set that this package packed, its native shards are taken.

    Args:
        store: the folder.
        options: what all importers are told.
        names: the files in it, where they were listed before.

    Raises:
        DataError: if there are no shards, one is hostile, or a json names an unknown split.
    """
    listed = store.list() if names is None else names
    found = [name for name in listed if not is_hidden(name)]
    shards = _shards(store, found)
    result = [item for path in shards for item in _shard_items(store, path, options)]
    if not result:
        raise DataError(f"the {len(shards)} tar files of {store.uri} hold no samples")
    return unique_keys(result)


def _shards(store: Store, found: list[str]) -> list[str]:
    packed = [name for name in found if name.endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.xz"))]
    if packed:
        raise DataError(
            f"{store.url(packed[0])} is compressed and cannot be read in parts; unpack it to "
            ".tar (images do not shrink anyway)"
        )
    if INDEX_NAME in found:
        index = load_index(store)
        return [s.path for s in index.shards if s.resolution == index.resolution]
    shards = sorted(name for name in found if name.endswith(".tar"))
    if not shards:
        raise DataError(f"{store.uri} has no .tar files")
    return shards


def _shard_items(store: Store, path: str, options: ImportOptions) -> Iterator[Item]:
    tar = TarFile(store, path)
    parts, lost = _collect(tar)
    for stem, sample in parts.items():
        yield _item(store, path, tar, stem, sample, options)
    for member in lost:
        yield _bad_item(store, path, f"@{member.start}", member.damage)


def _collect(tar: TarFile) -> tuple[dict[str, _Parts], list[Member]]:
    """Return the parts of each sample, and the places where a header is lost."""
    parts: dict[str, _Parts] = {}
    lost = []
    for member in members(tar):
        if not member.name:
            lost.append(member)
            continue
        folder, slash, base = member.name.rpartition("/")
        stem, _, extension = base.partition(".")
        if not stem:
            continue
        sample = parts.setdefault(folder + slash + stem, _Parts())
        if member.damage:
            sample.fault = sample.fault or member.damage
        elif extension.lower() in sample.members:
            sample.fault = sample.fault or f"member {member.name!r} appears twice"
        sample.members[extension.lower()] = member
    return parts, lost


def _item(
    store: Store, path: str, tar: TarFile, stem: str, sample: _Parts, options: ImportOptions
) -> Item:
    images = [name for name in _IMAGE_MEMBERS if name in sample.members]
    fault = sample.fault
    if not fault and len(images) != 1:
        fault = f"it has {len(images)} image members among {sorted(sample.members)}, not one"
    facts: dict[str, Any] = {}
    if not fault:
        facts, fault = _facts(tar, sample)
    if fault:
        return _bad_item(store, path, stem, fault)
    label, kind = _label_and_kind(facts, options)
    mask = sample.members.get(_MASK_MEMBER)
    return Item(
        key=key_of(f"{path.removesuffix('.tar')}/{stem}"),
        read=partial(
            read_members,
            store,
            path,
            _span(sample.members[images[0]]),
            _span(mask) if mask else None,
            options,
        ),
        label=label,
        kind=kind,
        group=str(_given(facts, "group", f"{path}/{stem}")),
        source=f"{store.url(path)}#{stem}",
        split=split_named(_given(facts, "split", ""), label, f"{store.url(path)}#{stem}"),
    )


def _span(member: Member) -> _Span:
    return member.start, member.size


def _bad_item(store: Store, path: str, stem: str, fault: str) -> Item:
    name = f"{path}/{stem}"
    return Item(
        key=key_of(f"{path.removesuffix('.tar')}/{stem}"),
        read=partial(_refuse, fault),
        label="unlabelled",
        kind="unknown",
        group=name,
        source=f"{store.url(path)}#{stem}",
    )


def _refuse(fault: str) -> NoReturn:
    raise DataError(fault)


def _facts(tar: TarFile, sample: _Parts) -> tuple[dict[str, Any], str]:
    """Return what json and cls say, and what is wrong with them."""
    facts: dict[str, Any] = {}
    for name in ("cls", "json"):
        member = sample.members.get(name)
        if member is None:
            continue
        if member.size > _SMALL_BYTES:
            return {}, f"its {name} member has {member.size} bytes, allowed: {_SMALL_BYTES}"
        try:
            value = json.loads(tar.read(member.start, member.size))
        # Deep nesting ends in a RecursionError.
        except (ValueError, RecursionError):
            return {}, f"its {name} member is no valid {'JSON' if name == 'json' else 'number'}"
        if name == "cls":
            facts["kind"] = value
        elif isinstance(value, dict):
            facts |= value
    return facts, ""


def _label_and_kind(facts: dict[str, Any], options: ImportOptions) -> tuple[Label, str]:
    told = _given(facts, "label", None)
    known = next((label for label in LABELS if label == told), None)
    kind = _given(facts, "kind", None if known else told)
    if known:
        return known, KINDS[known] if kind is None else str(kind)
    if not options.normal_kinds or kind is None:
        return "unlabelled", KINDS["unlabelled"] if kind is None else str(kind)
    return "normal" if str(kind) in options.normal_kinds else "abnormal", str(kind)


def _given(facts: dict[str, Any], name: str, default: Any) -> Any:
    """Return a fact; 0 is one, null and an empty text are none."""
    value = facts.get(name)
    return default if value in (None, "") else value


def read_members(
    store: Store, path: str, image: _Span, mask: _Span | None, options: ImportOptions
) -> Picture:
    """Read an image, given by start and size, and its mask from a tar file.

    Raises:
        DataError: if either cannot be used.
    """
    pixels = read_picture(store.read_range(path, *image), options)
    if mask is None:
        return pixels, None
    height, width, _ = pixels.shape
    payload = store.read_range(path, *mask)
    try:
        return pixels, read_mask(payload, (height, width))
    except DataError as error:
        raise DataError(f"its {_MASK_MEMBER}: {error}") from error
