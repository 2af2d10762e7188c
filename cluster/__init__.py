"""Everything that runs on Ray and everything a person types; start with `python -m cluster`."""

__version__ = "0.1.0"
