"""The one error this package raises for bad input."""


class DataError(ValueError):
    """Something about the data or its location is wrong and the user can fix it.

    The message is one line: what was read, what is wrong with it, and the fix.
    """


class StoreUnavailableError(DataError):
    """A store does not answer, breaks off or is overloaded: the same request may succeed later."""


class LostDataError(DataError):
    """An object is not there or not what was written; the rest of a data set may be sound."""
