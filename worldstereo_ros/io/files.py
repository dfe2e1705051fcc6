"""Text, JSON and table files of datasets. Sizes are checked before memory is allocated."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from worldstereo_ros.utils.errors import WorldStereoError
from worldstereo_ros.utils.file_kinds import explain_unreadable

MAX_TEXT_BYTES = 64 * 2**20
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".avi", ".webm", ".mpg", ".mpeg", ".3gp")


class DatasetError(WorldStereoError, ValueError):
    """A dataset with missing, invalid or contradicting files."""


def read_text(path: Path) -> str:
    """Reads a UTF-8 text file of at most 64 MiB, with or without a byte order mark; raises DatasetError."""
    try:
        size = path.stat().st_size
        if size > MAX_TEXT_BYTES:
            raise DatasetError(f"{path} has {size} bytes; a text file of at most {MAX_TEXT_BYTES} was expected.")
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DatasetError(f"The file {path} does not exist.") from None
    except UnicodeDecodeError:
        why = explain_unreadable(path, "text")
        raise DatasetError(f"{path} is not a UTF-8 text file. {why}".rstrip()) from None
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}.") from error


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object from a file; raises DatasetError."""
    try:
        content = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        why = explain_unreadable(path, "text")
        raise DatasetError(f"{path} is not valid JSON: {error}. {why}".rstrip()) from error
    if not isinstance(content, dict):
        raise DatasetError(f"{path} contains a {type(content).__name__}; a JSON object was expected.")
    return content


def read_prompt(path: Path) -> str:
    """Reads the text prompt from `prompt.json` or `traj_caption.json`; empty if the file does not exist.

    Raises:
        DatasetError: the file is damaged or has no prompt.
    """
    if not path.is_file():
        return ""
    content = read_json(path)
    for key in ("prompt", "long caption", "medium caption", "short caption"):
        if isinstance(content.get(key), str):
            return content[key]
    raise DatasetError(f'{path} has the keys {sorted(content)}; "prompt" or "long caption" was expected.')


def read_rows(path: Path, columns: str) -> Iterator[tuple[str, np.ndarray]]:
    """Reads a table of numbers whose first column is a frame number; '#' starts a comment.

    Args:
        path: text file.
        columns: names of the columns, separated by spaces.

    Yields:
        ("FILE, line N", (C,) float64 values) of every line with numbers.

    Raises:
        DatasetError: a line has another number of columns, is not numeric or not finite, or has no frame number.
    """
    count = len(columns.split())
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        text = line.split("#", 1)[0].split()
        if not text:
            continue
        where = f"{path}, line {number}"
        try:
            values = np.array([float(word) for word in text])
        except ValueError:
            raise DatasetError(f"{where} is '{line.strip()[:80]}'; numbers were expected: {columns}.") from None
        if len(values) != count:
            raise DatasetError(f"{where} has {len(values)} numbers; {count} were expected: {columns}.")
        if not np.isfinite(values).all():
            raise DatasetError(f"{where} has a number that is not finite (NaN or infinity).")
        if values[0] < 0 or values[0] != int(values[0]):
            raise DatasetError(f"{where} starts with {values[0]:g}; a frame number was expected.")
        yield where, values


def list_files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Returns the files with one of the suffixes, sorted by name; empty if the folder does not exist."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in suffixes)
