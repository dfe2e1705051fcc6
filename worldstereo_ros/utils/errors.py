"""Base classes of the errors that this package raises for invalid input and unusable files."""

from __future__ import annotations


class WorldStereoError(Exception):
    """Base of all errors whose message is written for the user: what came, what was expected, what to do.

    The command line prints the message and the node returns it to the client. Any other exception is a bug. Each
    subclass also derives from the matching built-in exception (ValueError for a bad argument), so that callers can
    catch it without knowing this package.
    """


class InputError(WorldStereoError, ValueError):
    """Invalid argument, option, message or file content."""


def first_line(error: BaseException) -> str:
    """The first line of the message of another package's error without its full stop, else the name of its type.

    Their further lines are for developers; an empty message says nothing at all.
    """
    lines = str(error).strip().splitlines()
    return (lines[0].rstrip(". ") if lines else "") or type(error).__name__
