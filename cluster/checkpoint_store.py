"""Checkpoints of a run as folders of a store: each one whole and of this run, or refused.

`checkpoint_<cuts>_<images>` is named by how often the learning rates were halved and by the images
seen, so that names sort by age. It holds the files of all ranks and, written last,
checkpoint.json, which lists their sizes and digests.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from cluster.errors import UserError
from data.errors import DataError, StoreError
from data.store import Store

SCHEMA_VERSION = 2
MANIFEST = "checkpoint.json"
FOLDER = "checkpoints"
_PREFIX = "checkpoint_"


class RefusedError(Exception):
    """A checkpoint cannot be used; the text says why."""


class Digest(BaseModel):
    """What a file must be.

    Attributes:
        bytes: Its size.
        sha256: Its digest, in hexadecimal.
    """

    model_config = ConfigDict(frozen=True)

    bytes: int
    sha256: str


class Manifest(BaseModel):
    """What a checkpoint says about itself.

    Attributes:
        schema_version: Format of its files.
        identity: What tells this run's checkpoints from another's.
        images_seen: Training images seen.
        world_size: Ranks that wrote it.
        metrics: Numbers reported with it.
        files: What each of its files must be, by name.
        pending: Phase of the schedule whose model is still to be measured, by its number.
    """

    model_config = ConfigDict(frozen=True)

    schema_version: int = SCHEMA_VERSION
    identity: dict[str, Any]
    images_seen: int
    world_size: int
    metrics: dict[str, int | float]
    files: dict[str, Digest]
    pending: int | None = None


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        run: Run directory.
        keep: How many whole checkpoints are kept.
        identity: What tells this run's checkpoints from another's, as plain values.
    """

    def __init__(self, run: Store, *, keep: int, identity: dict[str, Any]) -> None:
        self._store = run.child(FOLDER)
        self._keep = keep
        # As it comes back from a file, where a tuple is a list.
        self._identity: dict[str, Any] = json.loads(json.dumps(identity))
        self._refused: set[str] = set()

    def names(self) -> list[str]:
        """Names of all checkpoints, whole or not, oldest first."""
        folders = {path.split("/")[0] for path in self._store.list(_PREFIX) if "/" in path}
        return sorted(folders)

    def write(self, name: str, file: str, payload: bytes) -> Digest:
        """Write one file of a checkpoint and return what it must be."""
        self._store.write_bytes(f"{name}/{file}", payload)
        return Digest(bytes=len(payload), sha256=hashlib.sha256(payload).hexdigest())

    def read(self, name: str, file: str) -> bytes:
        """Return one file of a checkpoint."""
        return self._store.read_bytes(f"{name}/{file}")

    def finish(
        self,
        name: str,
        files: dict[str, Digest],
        *,
        images_seen: int,
        world_size: int,
        metrics: dict[str, float],
        pending: int | None = None,
    ) -> None:
        """Read a checkpoint's files back, declare it whole, and delete those it replaces.

        Args:
            name: Its name.
            files: What each of its files must be.
            images_seen: Training images seen.
            world_size: Ranks that wrote it.
            metrics: Numbers reported with it.
            pending: Phase whose model is still to be measured, by its number.

        Raises:
            RefusedError: If what the store holds is not what was written.
        """
        self._check_files(name, files)
        manifest = Manifest(
            identity=self._identity,
            images_seen=images_seen,
            world_size=world_size,
            metrics=metrics,
            files=files,
            pending=pending,
        )
        self._write_manifest(name, manifest)
        self._refused.discard(name)
        self._prune()

    def add_metrics(self, name: str, metrics: dict[str, float]) -> None:
        """Keep with a checkpoint what was measured of its model; nothing if it does not count."""
        with contextlib.suppress(RefusedError):
            now = {"metrics": metrics, "pending": None}
            self._write_manifest(name, self._manifest(name).model_copy(update=now))

    def _write_manifest(self, name: str, manifest: Manifest) -> None:
        self._store.write_bytes(f"{name}/{MANIFEST}", manifest.model_dump_json(indent=1).encode())

    def newest(self, note: Callable[[str], None]) -> tuple[str, Manifest] | None:
        """The newest checkpoint that can be used.

        Args:
            note: Called with a line for people about each newer one that cannot.

        Returns:
            Its name and manifest; None where training has to start from the beginning.

        Raises:
            UserError: If there are checkpoints and none of them can be used. A first one that was
                never finished does not count: nothing came before it.
        """
        names = self.names()
        for name in reversed(names):
            try:
                found = self.verify(name)
            except RefusedError as error:
                self._refused.add(name)
                note(f"checkpoint {self._store.url(name)} is not used: {error}")
            else:
                if self._refused:
                    note(f"training goes on from {self._store.url(name)}")
                return name, found
        if names and (len(names) > 1 or self._store.exists(f"{names[0]}/{MANIFEST}")):
            raise UserError(
                f"none of the {len(names)} checkpoints in {self._store.uri} can be used; bring "
                "sound ones back, delete the folder to start anew, or choose another run.dir"
            )
        return None

    def verify(self, name: str) -> Manifest:
        """The manifest of a checkpoint of this run whose files are all as they were written.

        Raises:
            RefusedError: If it is not such a one.
            StoreError: If the store does not answer or refuses.
        """
        manifest = self._manifest(name)
        for key, wanted in self._identity.items():
            if key in manifest.identity and manifest.identity[key] != wanted:
                raise RefusedError(
                    f"it is of another run, with {key}={manifest.identity[key]!r}, not {wanted!r}"
                )
        self._check_files(name, manifest.files)
        return manifest

    def _manifest(self, name: str) -> Manifest:
        if not self._store.exists(f"{name}/{MANIFEST}"):
            raise RefusedError(f"it has no {MANIFEST}, so it was never finished")
        with _refusing_lost():
            content = self._store.read_bytes(f"{name}/{MANIFEST}")
        try:
            tree = json.loads(content)
            version = tree["schema_version"]
            if version != SCHEMA_VERSION:
                raise RefusedError(
                    f"it has schema_version={version}, this version of the program reads "
                    f"{SCHEMA_VERSION}; resume with the one that wrote it"
                )
            return Manifest.model_validate(tree)
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, ValidationError):
            raise RefusedError(f"its {MANIFEST} is damaged") from None

    def _check_files(self, name: str, files: dict[str, Digest]) -> None:
        for file, wanted in files.items():
            digest, size = hashlib.sha256(), 0
            with _refusing_lost():
                for chunk in self._store.read_chunks(f"{name}/{file}"):
                    digest.update(chunk)
                    size += len(chunk)
            if size != wanted.bytes:
                raise RefusedError(f"{file} has {size} bytes, not {wanted.bytes}")
            if digest.hexdigest() != wanted.sha256:
                raise RefusedError(f"{file} has another sha256 than {MANIFEST} says")

    def _prune(self) -> None:
        """Delete what is older than the last few whole checkpoints."""
        names = self.names()
        whole = [
            name
            for name in names
            if name not in self._refused and self._store.exists(f"{name}/{MANIFEST}")
        ]
        for name in names:
            if name < whole[-self._keep :][0]:
                self._store.delete_folder(name)


@contextlib.contextmanager
def _refusing_lost() -> Iterator[None]:
    """Refuse what cannot be read, but not because of a store that does not answer or refuses."""
    try:
        yield
    except StoreError:
        raise
    except DataError as error:
        raise RefusedError(str(error)) from None


def checkpoint_name(*, num_cuts: int, images_seen: int) -> str:
    """Name of a checkpoint; of two, the later one has the greater name."""
    return f"{_PREFIX}{num_cuts:03d}_{images_seen:012d}"


def last_metrics(run: Store) -> dict[str, float]:
    """Numbers reported with the last checkpoint of a run; empty if it has none."""
    for path in reversed(run.list(f"{FOLDER}/{_PREFIX}", f"/{MANIFEST}")):
        # A damaged one was refused, and an older one used in its place.
        with contextlib.suppress(ValidationError):
            return Manifest.model_validate_json(run.read_bytes(path)).metrics
    return {}
