"""The files data sets are made of: texts, tables of numbers, clips. Sizes are checked before memory is taken."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from worldstereo_ros.utils.errors import WorldStereoError

MAX_TEXT_BYTES = 64 * 2**20
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".avi", ".webm")


class DatasetError(WorldStereoError, ValueError):
    """A data set that cannot be used. The message is a sentence: what came, what was expected, what to do."""


def read_text(path: Path) -> str:
    """A text file, UTF-8, of at most 64 MiB; raises DatasetError."""
    try:
        size = path.stat().st_size
        if size > MAX_TEXT_BYTES:
            raise DatasetError(f"{path} has {size} bytes; a text of at most {MAX_TEXT_BYTES} was expected.")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DatasetError(f"There is no file {path}.") from None
    except UnicodeDecodeError:
        raise DatasetError(f"{path} is no text.") from None
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}.") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object; raises DatasetError."""
    try:
        content = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise DatasetError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{path} holds a {type(content).__name__}; a JSON object was expected.")
    return content


def read_prompt(path: Path) -> str:
    """The sentence about the place in `prompt.json` or `traj_caption.json`; empty where the file is missing."""
    if not path.is_file():
        return ""
    content = read_json(path)
    for key in ("prompt", "long caption", "medium caption", "short caption"):
        if isinstance(content.get(key), str):
            return content[key]
    raise DatasetError(f'{path} has the keys {sorted(content)}; "prompt" or "long caption" was expected.')


def read_rows(path: Path, numbers: str) -> Iterator[tuple[str, np.ndarray]]:
    """('FILE, line N', values) of every line that is no comment; each must have as many numbers as `numbers` names."""
    count = len(numbers.split())
    for at, line in enumerate(read_text(path).splitlines(), start=1):
        text = line.split("#", 1)[0].split()
        if not text:
            continue
        where = f"{path}, line {at}"
        try:
            values = np.array([float(word) for word in text])
        except ValueError:
            raise DatasetError(f"{where} is '{line.strip()[:80]}'; numbers were expected: {numbers}.") from None
        if len(values) != count:
            raise DatasetError(f"{where} has {len(values)} numbers; {count} were expected: {numbers}.")
        if not np.isfinite(values).all():
            raise DatasetError(f"{where} has a number that is not finite (NaN or infinity).")
        if values[0] < 0 or values[0] != int(values[0]):
            raise DatasetError(f"{where} begins with {values[0]:g}; the number of a frame was expected.")
        yield where, values


def list_files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files in `folder` that end so, sorted by name; none where there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in suffixes)
