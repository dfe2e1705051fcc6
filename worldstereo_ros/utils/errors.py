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
