"""Errors a person can act on."""


class UserError(ValueError):
    """Something the user gave cannot work; the text says what, and what to do instead."""
