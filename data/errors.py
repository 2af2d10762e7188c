"""The one error this package raises for bad input."""

import errno


class DataError(ValueError):
    """Something about the data or its location is wrong and the user can fix it.

    The message is one line: what was read, what is wrong with it, and the fix.
    """


class StoreError(DataError):
    """A store, a disk or a machine fails or refuses in a way that says nothing about the data."""


class StoreUnavailableError(StoreError):
    """A store does not answer, breaks off or is overloaded: the same request may succeed later."""


class LostDataError(DataError):
    """An object is not there or not what was written; the rest of a data set may be sound."""


def disk_error(action: str, error: OSError) -> DataError:
    """Return what to raise where a local disk refuses.

    Only a file that is not there, or a disk that is broken under it, says something about the data;
    a server that does not answer, or too many open files, does not.
    """
    lost = error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EIO)
    return (LostDataError if lost else StoreError)(f"{action} failed: {error.strerror}")


def memory_error(source: str) -> StoreError:
    """Return what to raise where there is no memory left for an image."""
    return StoreError(
        f"there is not enough memory for {source}; raise cluster.cpus_per_worker, so that fewer "
        "images are prepared at once, and run the same command again"
    )
