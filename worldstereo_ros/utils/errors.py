"""The base of every error that this package raises on purpose."""

from __future__ import annotations


class WorldStereoError(Exception):
    """An error with a sentence for the user: what came, what was expected, what to do.

    The command line prints the sentence and the node sends it to the caller; every other exception is a fault of ours.
    Each subclass also derives from the built-in exception that callers of Python functions expect (ValueError for a bad
    argument), so that code that does not know this package can catch it.
    """


class InputError(WorldStereoError, ValueError):
    """An argument, option, message or file content that cannot be used."""
