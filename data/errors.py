"""The one error this package raises for bad input."""


class DataError(ValueError):
    """Something about the data or its location is wrong and the user can fix it.

    The message is one line: what was read, what is wrong with it, and the fix.
    """
