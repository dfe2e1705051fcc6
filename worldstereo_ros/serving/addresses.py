"""How a robot names itself and its server. Imports nothing slow: the node's parameters are checked with it."""

from __future__ import annotations

import re
import urllib.parse

from worldstereo_ros.utils.errors import InputError

_ROBOT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def check_robot(robot: str) -> str:
    """Returns the id of a robot. Raises InputError if it is none."""
    if not _ROBOT.fullmatch(robot):
        raise InputError(
            f"The robot id {robot[:80]!r} is invalid; up to 64 letters, digits, '_', '-' and '.' were expected, "
            "beginning with a letter or digit."
        )
    return robot


def parse_url(url: str) -> tuple[bool, str, int, str]:
    """(whether it is https, host, port, path before /v1). Raises InputError for what is no URL of a server."""
    expected = "http://HOST:PORT or https://HOST:PORT was expected"
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError:
        raise InputError(f"The URL '{url[:200]}' is invalid; {expected}.") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise InputError(f"The URL '{url[:200]}' is invalid; {expected}.")
    secure = parts.scheme == "https"
    return secure, parts.hostname, port or (443 if secure else 80), parts.path.rstrip("/")
