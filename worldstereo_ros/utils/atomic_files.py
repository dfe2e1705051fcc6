"""Files that are complete or not there: written aside, synced, checked, and renamed.

Every file that this package writes goes through here. A full disk, an interruption or a kill leaves the earlier file
(or none) under the final name, never a part of the new one, and what was not written is never reported as written.
Other programs' writers, which want a path, get one beside the target (`atomic_path`); whatever can be encoded in memory
is written with `atomic_file` or `write_bytes`, which work with any name, also one that is not UTF-8. Files that belong
together appear together (`AtomicFolder`).
"""

from __future__ import annotations

import errno
import fcntl
import glob
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from worldstereo_ros.utils.errors import WorldStereoError

PARTIAL_SUFFIX = ".partial"
_STAGING_SUFFIX = ".worldstereo.partial"  # of folders
_TAG = "?" * 16  # pattern of `secrets.token_hex(8)`, the random part of a name
_ADVICE = {
    errno.ENOSPC: "Free some space, or write to another disk.",
    errno.EDQUOT: "Free some space, or write to another disk.",
    errno.EACCES: "Choose a folder that you may write to.",
    errno.EPERM: "Choose a folder that you may write to.",
    errno.EROFS: "Choose a folder that can be written to.",
    errno.ENOTDIR: "Choose another path: a part of this one is a file.",
    errno.EEXIST: "Choose another path: a part of this one is a file.",
    errno.EISDIR: "Choose another path: this one is a folder.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
}


class WriteError(WorldStereoError, OSError):
    """A file that could not be written; what was there before is unchanged.

    Attributes:
        path: the file.
        reason: why, as a phrase without a full stop.
        replaced: True if the new file is in place, but might not survive a power failure.
    """

    def __init__(self, path: Path, reason: str, *, code: int | None = None, replaced: bool = False) -> None:
        advice = _ADVICE.get(code or 0, "")
        if replaced:
            text = f"{path} was written, but its folder could not be synced: {reason}."
        else:
            text = f"{path} could not be written: {reason}." + (f" {advice}" if advice else "")
        super().__init__(text)
        self.path, self.reason, self.replaced = path, reason, replaced
        self.errno = code


@contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """Opens a binary file for writing that appears under its name when the block ends without an exception.

    Parts that killed processes left beside it are removed; those that a running process still writes are not.

    Args:
        path: file to write; its folder is created if it is missing, an existing file is replaced.

    Yields:
        The open file.

    Raises:
        WriteError: the file cannot be written, or the disk holds fewer bytes than were written.
    """
    path = Path(path)
    with _as_write_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        partial, file = _open_partial(path)
        try:
            with file:
                yield file
                file.flush()
                _sync(file.fileno(), file.tell())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    sync_folder(path.parent, path)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Gives the path of a file to write, which gets its name `path` when the block ends without an exception.

    For writers of other packages, which open files themselves. A caller that knows what the file has to hold checks it
    at the end of the block.

    Args:
        path: see `atomic_file`.

    Yields:
        A path in the same folder, with the same suffix, where nothing is.

    Raises:
        WriteError: the file cannot be written, or the block wrote none or an empty one.
    """
    path = Path(path)
    with _as_write_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{secrets.token_hex(8)}{PARTIAL_SUFFIX}{path.suffix}")
        try:
            yield partial
            sync_file(partial)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    sync_folder(path.parent, path)


class AtomicFolder:
    """Files of one folder that appear together, such as the frames of a sequence, when the block ends.

    They are written into a hidden folder inside, synced all at once (which is fast: a sync for each file would take
    longer than everything else), and renamed. If the block ends with an exception, the folder is as it was before.

        with AtomicFolder("walk") as files:
            files.write("frames/000000.png", content)

    Args:
        path: the folder; created if it is missing.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._sizes: dict[Path, int] = {}
        self._removed: list[Path] = []
        self._staging = self.path
        self._lock = -1

    def write(self, name: str | Path, content: bytes | bytearray | memoryview) -> None:
        """Writes the file `name` (relative to the folder), which replaces one of that name. Raises WriteError."""
        staged = self._staging / name
        with _as_write_error(self.path / name):
            staged.parent.mkdir(parents=True, exist_ok=True)
            staged.write_bytes(content)
        self._sizes[Path(name)] = len(content)

    def remove(self, name: str | Path) -> None:
        """Removes the file `name` with the block's end, if it is there and was not written in the block."""
        self._removed.append(Path(name))

    def __enter__(self) -> AtomicFolder:
        with _as_write_error(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            for leftover in self.path.glob(f".{_TAG}{_STAGING_SUFFIX}"):
                if leftover.is_dir() and not leftover.is_symlink():
                    _remove_leftover_folder(leftover)
            self._staging = self.path / f".{secrets.token_hex(8)}{_STAGING_SUFFIX}"
            self._staging.mkdir()
            self._lock = lock_folder(self._staging)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        try:
            if error is None:
                self._finish()
        finally:
            shutil.rmtree(self._staging, ignore_errors=True)
            os.close(self._lock)

    def _finish(self) -> None:
        with ThreadPoolExecutor(16) as threads:  # the disk joins syncs that wait at the same time
            list(threads.map(self._sync, self._sizes))
        folders = {self.path}
        for name in self._sizes:
            with _as_write_error(self.path / name):
                (self.path / name).parent.mkdir(parents=True, exist_ok=True)
                folders.add((self.path / name).parent)
        for name in self._removed:
            if name not in self._sizes:
                with _as_write_error(self.path / name):
                    (self.path / name).unlink(missing_ok=True)
        for name in self._sizes:
            with _as_write_error(self.path / name):
                (self._staging / name).replace(self.path / name)
        for folder in folders:
            sync_folder(folder)

    def _sync(self, name: Path) -> None:
        with _as_write_error(self.path / name), (self._staging / name).open("rb") as file:
            _sync(file.fileno(), self._sizes[name])


@contextmanager
def readable_path(path: str | Path) -> Iterator[str]:
    """Gives a name of an existing file for libraries that end the process on names that are not UTF-8.

    Yields:
        The absolute path (a relative one may look like an option or a URL), or one of the open file within /proc where
        it is not UTF-8. It holds within the block.

    Raises:
        OSError: the file cannot be opened.
    """
    name = str(Path(path).absolute())
    try:
        name.encode()
    except UnicodeEncodeError:
        with Path(path).open("rb") as file:
            yield f"/proc/self/fd/{file.fileno()}"
    else:
        yield name


def write_bytes(path: str | Path, content: bytes | bytearray | memoryview) -> None:
    """Writes a whole file with `atomic_file`. Raises WriteError."""
    with atomic_file(path) as file:
        file.write(content)


def write_text(path: str | Path, text: str) -> None:
    """Writes a whole UTF-8 file with `atomic_file`; what is no Unicode, as in some file names, is escaped.

    Raises:
        WriteError: the file cannot be written.
    """
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def write_json(path: str | Path, content: Any, *, indent: int = 1) -> None:
    """Writes a JSON file with `atomic_file`.

    Raises:
        WriteError: the file cannot be written.
        TypeError: the content has other types than JSON.
        ValueError: a number is infinite or NaN, which JSON does not have.
    """
    write_text(path, json.dumps(content, indent=indent, allow_nan=False) + "\n")


def sync_file(path: Path) -> None:
    """Syncs a file that another package's writer has closed. Raises OSError, also if the file is empty."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        if os.fstat(file.fileno()).st_size == 0:
            raise OSError(errno.EIO, "the file came out empty; the disk may be full")


def sync_folder(folder: Path, path: Path | None = None) -> None:
    """Syncs the entries of a folder, so that a renamed file keeps its name after a power failure.

    Args:
        folder: the folder.
        path: the file that was renamed, for the message; None for the folder itself.

    Raises:
        WriteError: the folder could not be synced; its `replaced` is True.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOTSUP):  # a file system that does not sync folders
            return
        raise WriteError(path or folder, _reason(error), code=error.errno, replaced=True) from error


def check_writable(path: str | Path) -> None:
    """Checks that a file can be written, before what it is to hold is computed. Raises WriteError."""
    path = Path(path)
    if path.is_dir():
        raise WriteError(path, os.strerror(errno.EISDIR), code=errno.EISDIR)
    check_folder_writable(path.parent, path)


def check_folder_writable(path: Path, file: Path | None = None) -> None:
    """Writes a file to the folder, or to the nearest parent that there is, and removes it.

    Args:
        path: the folder.
        file: the file to name in the message; None for the folder itself.

    Raises:
        WriteError: the folder cannot be written to.
    """
    folder = path.absolute()
    while not folder.exists():
        folder = folder.parent
    try:
        if not folder.is_dir():
            raise OSError(errno.ENOTDIR, f"{folder} is a file")
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"0")
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise WriteError(file or path, error.strerror or str(error), code=error.errno) from error


@contextmanager
def _as_write_error(path: Path) -> Iterator[None]:
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        raise WriteError(path, _reason(error), code=error.errno) from error


def _reason(error: OSError) -> str:
    return (error.strerror or str(error) or type(error).__name__).rstrip(".")


def _sync(descriptor: int, size: int) -> None:
    os.fsync(descriptor)  # reports what the disk refused after write() had accepted it
    found = os.fstat(descriptor).st_size
    if found != size:
        raise OSError(errno.EIO, f"{found} of its {size} bytes are on the disk")


def _open_partial(path: Path) -> tuple[Path, BinaryIO]:
    """Creates a file beside `path`. It is locked while open, which tells a running process from a killed one."""
    while True:
        partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}{PARTIAL_SUFFIX}")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken = not partial.exists()
        except BlockingIOError:
            taken = True
        except OSError:  # a file system without locks; leftovers are not removed there
            taken = False
        if not taken:
            return partial, os.fdopen(descriptor, "wb")
        os.close(descriptor)  # another process removed it as a leftover between the two calls


def lock_folder(folder: Path) -> int:
    """Opens and locks a folder; returns its descriptor. Raises BlockingIOError if another process holds the lock."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:  # a file system without locks
        pass
    return descriptor


def _remove_leftover_folder(folder: Path) -> None:
    """Removes what a killed `AtomicFolder` left, but not what a running one still writes."""
    try:
        descriptor = lock_folder(folder)
    except OSError:
        return
    try:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)


def _remove_leftovers(path: Path) -> None:
    """Removes parts of this file that killed processes left, but not those that a running one still writes."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.{_TAG}{PARTIAL_SUFFIX}"):
        try:
            descriptor = os.open(leftover, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leftover.unlink(missing_ok=True)
        except OSError:
            pass  # locked by a running process, or not permitted; neither keeps this one from finishing
        finally:
            os.close(descriptor)
