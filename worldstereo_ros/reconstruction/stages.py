"""Stages of a long computation that survive Ctrl-C and kill -9.

Each stage has a folder. What it was computed from is written into it first, as a fingerprint, and when it is done that
it is. A later run with the same fingerprint uses what is done, and continues what was begun: files in the folder are
complete or not there (`utils.atomic_files`). Another fingerprint empties the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from worldstereo_ros.utils.atomic_files import WriteError, lock_folder, write_json
from worldstereo_ros.utils.errors import InputError

STAGES_FOLDER = "stages"
_MARKER = "worldstereo_stages.json"
_BEGUN, _DONE = "begun.json", "done.json"
FORMAT = 2  # changes where the same inputs give other results

T = TypeVar("T")


def fingerprint(*parts: Any) -> str:
    """SHA-256 of values that can be encoded as JSON."""
    return hashlib.sha256(json.dumps([FORMAT, *parts], sort_keys=True).encode()).hexdigest()


def file_stamps(files: Iterable[Path]) -> list[list[Any]]:
    """Path, size and time of the last change of files, for a fingerprint. Files that do not exist count as such."""
    stamps: list[list[Any]] = []
    for file in files:
        try:
            status = file.stat()
            stamps.append([str(file.resolve()), status.st_size, status.st_mtime_ns])
        except OSError:
            stamps.append([str(file), None, None])
    return stamps


class Stages:
    """The stages of a run, in a folder of their own that no other run writes to at the same time.

    Attributes:
        folder: where the stages lie.
        seconds: stage -> seconds that it took, also of stages that an earlier run completed.
        resumed: stages that an earlier run completed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seconds: dict[str, float] = {}
        self.resumed: list[str] = []

    def check(self) -> None:
        """Raises InputError if something else than stages has the name of the folder."""
        if self.folder.is_symlink() or (self.folder.exists() and not self.folder.is_dir()):
            raise InputError(f"{self.folder} is in the way. Move it away, or choose another --out.")
        if self.folder.is_dir() and not (self.folder / _MARKER).is_file() and any(self.folder.iterdir()):
            raise InputError(
                f"{self.folder} was not made by an earlier run, so it is not touched. Move it away, or choose another "
                "--out."
            )

    @contextmanager
    def open(self) -> Iterator[Stages]:
        """Locks the folder while a run uses it. Raises InputError if another run does, WriteError."""
        self.check()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = lock_folder(self.folder.resolve())
        except BlockingIOError:
            raise InputError(f"Another run writes to {self.folder.parent} now. Choose another --out.") from None
        except OSError as error:
            raise WriteError(self.folder, error.strerror or str(error), code=error.errno) from error
        try:
            write_json(self.folder / _MARKER, {"worldstereo_stages": FORMAT})
            yield self
        finally:
            os.close(lock)

    def run(self, name: str, inputs: str, compute: Callable[[Path], T], load: Callable[[Path], T]) -> T:
        """Computes a stage, or loads what an earlier run computed.

        Args:
            name: of the stage and its folder.
            inputs: fingerprint of everything that the result depends on.
            compute: computes the stage into the folder that it gets, and returns its result.
            load: returns the result from the folder of a stage that is done.
        """
        folder = self.folder / name
        done = _read(folder / _DONE)
        if done.get("inputs") == inputs:
            self.seconds[name] = float(done.get("seconds", 0.0))
            self.resumed.append(name)
            return load(folder)
        begun = _read(folder / _BEGUN)
        if begun.get("inputs") != inputs:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / _BEGUN, {"inputs": inputs})
        start = time.perf_counter()
        result = compute(folder)
        self.seconds[name] = round(time.perf_counter() - start, 2)
        write_json(folder / _DONE, {"inputs": inputs, "seconds": self.seconds[name]})
        return result


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
