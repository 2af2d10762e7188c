"""Errors a person can act on."""

import contextlib
from collections.abc import Iterator

from data.errors import DataError, StoreError


class UserError(ValueError):
    """Something the user gave cannot work; the text says what, and what to do instead."""


@contextlib.contextmanager
def lasting_as_user_error() -> Iterator[None]:
    """Turn errors of the data that no other worker would be spared into a `UserError`.

    Those that a store or a disk causes stay what they are: they may pass, or be one machine's.
    """
    try:
        yield
    except StoreError:
        raise
    except DataError as error:
        raise UserError(str(error)) from error
