"""The token that robots show, read from a file."""

from __future__ import annotations

import hashlib
import hmac
import logging
import stat
from pathlib import Path

from worldstereo_ros.utils.errors import InputError

logger = logging.getLogger(__name__)

MIN_LENGTH, MAX_LENGTH = 16, 4096


def read_token(path: str | Path) -> str:
    """Reads a token: the first line of a file.

    Warns if others than the file's owner may read it.

    Raises:
        InputError: the file cannot be read, or its first line is too short, too long, or no printable ASCII.
    """
    file = Path(path).expanduser()
    advice = f"Make one with: (umask 077; openssl rand -hex 32 > {file})."
    try:
        with file.open("rb") as opened:
            line = opened.readline(MAX_LENGTH + 2)
        mode = file.stat().st_mode
    except FileNotFoundError:
        raise InputError(f"The token file {file} does not exist. {advice}") from None
    except OSError as error:
        raise InputError(f"The token file {file} cannot be read: {error.strerror}.") from None
    token = line.decode("ascii", errors="replace").strip()
    if not MIN_LENGTH <= len(token) <= MAX_LENGTH or not token.isascii() or not token.isprintable() or " " in token:
        raise InputError(
            f"The token file {file} has a first line of {len(token)} characters; {MIN_LENGTH} to {MAX_LENGTH} "
            f"printable ones of ASCII without spaces were expected. {advice}"
        )
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        logger.warning("Other users may read the token file %s; `chmod 600` it.", file)
    return token


def digest_of(token: str) -> str:
    """The digest of a token, which a server keeps in its place. Tokens are random and long, so it tells nothing."""
    return hashlib.sha256(token.encode()).hexdigest()


def is_valid(header: str | None, digest: str) -> bool:
    """Whether an Authorization header shows the token of a digest; takes the same time wherever they differ."""
    scheme, _, token = (header or "").partition(" ")
    given = digest_of(token.strip()[:MAX_LENGTH])
    return hmac.compare_digest(given, digest) and scheme.lower() == "bearer"
