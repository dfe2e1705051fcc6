"""The folder of a command's results: checked before anything is computed; nothing is removed that was not made here.

A marker file in the folder names what a run wrote, with size and time of each file. The next run replaces exactly
these files. Whatever else lies in the way, such as a recording of the user, is an error, and stays.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

from worldstereo_ros.utils.atomic_files import (
    PARTIAL_SUFFIX,
    WriteError,
    check_folder_writable,
    lock_folder,
    write_json,
)
from worldstereo_ros.utils.errors import InputError

MARKER_FILE = ".worldstereo_results"
_FORMAT = 1
_MAX_MARKER_BYTES = 64 * 2**20

Stamp = tuple[int, int]  # size in bytes, time of the last change in ns


class ResultsFolder:
    """Context manager around the writing of results.

        results = ResultsFolder("out", ["imagined", "cloud.ply"], sources=[bag])  # at once: raises if it cannot be
        ...  # minutes of computing
        with results:  # the results of an earlier run are gone
            write_point_cloud(cloud, results.path / "cloud.ply")

    Args:
        path: the folder. It may exist, with other files in it, which stay.
        names: names of the files and folders, directly inside, that the run is going to write.
        sources: files and folders that the run reads.

    Raises:
        InputError: the path is a file, a source lies in the folder or the folder in a source, or a file that no earlier
            run wrote has one of the names.
        WriteError: the folder cannot be written to.
    """

    def __init__(self, path: str | Path, names: Sequence[str], *, sources: Sequence[str | Path | None] = ()) -> None:
        self.path = Path(path)
        self._names = tuple(names)
        self._lock = -1
        for source in sources:
            if source is not None:
                self._check_source(Path(source))
        if self.path.is_dir():
            self._check_conflicts()
        elif self.path.exists() or self.path.is_symlink():
            raise InputError(f"{self.path} is a file; a folder for the results was expected. Choose another --out.")
        check_folder_writable(self.path)

    def _check_source(self, source: Path) -> None:
        out, given = self.path.resolve(), source.resolve()
        if out == given or out in given.parents:
            where = f"The source {source} lies in the output folder {self.path}"
        elif given in out.parents:
            where = f"The output folder {self.path} lies in the source {source}"
        else:
            return
        raise InputError(f"{where}; results are not mixed with what they were made from. Choose another --out.")

    def _check_conflicts(self) -> None:
        recorded = _Record.read(self.path)
        for name in self._names:
            for relative in _entries(self.path, name):
                if not recorded.owns(self.path, relative):
                    raise InputError(
                        f"{self.path / relative} is in the way: it is not on record as a result of an earlier run, or "
                        "was changed since, so it is not replaced. Move it away, or choose another --out."
                    )

    def __enter__(self) -> ResultsFolder:
        """Removes the results of an earlier run. Raises InputError (also if another run writes there), WriteError."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = lock_folder(self.path.resolve())
        except BlockingIOError:
            raise InputError(f"Another run writes to {self.path} now. Choose another --out.") from None
        except OSError as error:
            raise WriteError(self.path, error.strerror or str(error), code=error.errno) from error
        try:
            self._check_conflicts()  # again: minutes may have passed
            _Record.read(self.path).remove_files(self.path)
            write_json(self.path / MARKER_FILE, {"worldstereo_results": _FORMAT, "names": self._names, "files": None})
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Records what was written, also after an error, so that the next run may replace it."""
        try:
            files = {
                relative.as_posix(): _stamp(self.path / relative)
                for name in self._names
                for relative in _entries(self.path, name)
            }
            content = {"worldstereo_results": _FORMAT, "names": self._names, "files": files}
            with contextlib.suppress(*([WriteError] if error is not None else [])):  # the first error is the one to see
                write_json(self.path / MARKER_FILE, content)
        finally:
            os.close(self._lock)


class _Record:
    """The content of a marker file: what an earlier run wrote. Empty if there is none, or if it is damaged."""

    def __init__(self, names: tuple[str, ...] = (), files: dict[PurePosixPath, Stamp] | None = None) -> None:
        self.names, self.files = names, files  # files is None if that run did not end

    @classmethod
    def read(cls, folder: Path) -> _Record:
        try:
            if (folder / MARKER_FILE).stat().st_size > _MAX_MARKER_BYTES:
                return cls()
            content: Any = json.loads((folder / MARKER_FILE).read_text(encoding="utf-8"))
            if content["worldstereo_results"] != _FORMAT:
                return cls()
            names = tuple(
                name for name in content["names"] if isinstance(name, str) and _is_inside(PurePosixPath(name))
            )
            if content["files"] is None:
                return cls(names, None)
            files = {PurePosixPath(name): (int(size), int(time)) for name, (size, time) in content["files"].items()}
            return cls(names, {name: stamp for name, stamp in files.items() if _is_inside(name)})
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return cls((), {})

    def owns(self, folder: Path, relative: PurePosixPath) -> bool:
        """Whether the run wrote this file, and it is unchanged since."""
        if (folder / relative).is_symlink():
            return False
        if self.files is None:  # nothing had these names when that run began, so all that has them now is the run's
            return relative.parts[0] in self.names
        return self.files.get(relative) == _stamp(folder / relative)

    def remove_files(self, folder: Path) -> None:
        """Removes the files that the run wrote, and the folders that are empty then."""
        for name in self.names:
            for relative in list(_entries(folder, name)):
                if self.owns(folder, relative) and not (folder / relative).is_dir():
                    (folder / relative).unlink()
            for parent, _, _ in os.walk(folder / name, topdown=False):
                with contextlib.suppress(OSError):  # not empty
                    Path(parent).rmdir()
            for leftover in folder.glob(f".{name}.{'?' * 16}{PARTIAL_SUFFIX}*"):
                leftover.unlink(missing_ok=True)


def _is_inside(path: PurePosixPath) -> bool:
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def _entries(folder: Path, name: str) -> Iterator[PurePosixPath]:
    """The files at and below `folder`/`name`, and symbolic links, relative to the folder. Links are not followed.

    A folder without any file is an entry itself.
    """
    if (folder / name).is_symlink() or (folder / name).is_file():
        yield PurePosixPath(name)
        return
    found = False
    for parent, folders, files in os.walk(folder / name):
        links = [entry for entry in folders if (Path(parent) / entry).is_symlink()]
        for entry in (*files, *links):
            found = True
            yield PurePosixPath((Path(parent) / entry).relative_to(folder))
    if not found and (folder / name).is_dir():
        yield PurePosixPath(name)


def _stamp(path: Path) -> Stamp:
    status = path.lstat()
    return status.st_size, status.st_mtime_ns
