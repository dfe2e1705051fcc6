"""Finds the files of a recording, checks and opens them, and says what is wrong with those that cannot be opened."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from rosbags.rosbag2 import Reader

from worldstereo_ros.io.bags.compression import UnpackError, unpack_zstd_file
from worldstereo_ros.io.bags.errors import BagError
from worldstereo_ros.io.bags.mcap_contents import check_chunks, explain_mcap
from worldstereo_ros.utils.file_kinds import explain_unreadable, identify_file

METADATA = "metadata.yaml"
_SUFFIXES = (".mcap", ".db3")


def open_readers(path: Path, stack: ExitStack) -> list[Reader]:
    """Opens a recording.

    Args:
        path: a folder with metadata.yaml, an .mcap or .db3 file, or a folder with the files of one split recording.
        stack: closes the readers, and removes what was unpacked for them.

    Returns:
        Readers whose messages follow one another.

    Raises:
        BagError: the recording cannot be read; the message says what it is, and what to do.
    """
    if not path.exists():
        raise BagError(f"The bag {path} does not exist.")
    try:
        if path.is_dir() and (path / METADATA).is_file():
            path = _unpacked(path, stack)
            parts = [path]
        else:
            parts = _files(path) if path.is_dir() else [path]
        for file in _recorded_files(parts):
            if identify_file(file).name == "mcap":
                check_chunks(file)
        readers = []
        for part in parts:
            reader = Reader(part)
            reader.open()
            stack.callback(reader.close)
            _check_index(reader)
            readers.append(reader)
        return sorted(readers, key=lambda reader: reader.start_time) if len(readers) > 1 else readers
    except BagError:
        raise
    except UnpackError as error:
        raise BagError(f"The bag {path} is not read. {error}") from error
    except Exception as error:  # readers raise arbitrary exceptions on damaged files
        raise BagError(unreadable_message(path, error)) from error


def _check_index(reader: Reader) -> None:
    """Checks the chunks that a reader will unpack, which it finds by the index at the end of the file."""
    for storage in getattr(reader.storage, "storages", [reader.storage]):
        chunks = getattr(storage, "chunks", ())
        # A chunk's record: opcode and length (9 bytes), its fields (40 bytes and the name of the compression), content.
        index = [(c.chunk_start_offset + 49 + len(c.compression), c.compression, c.compressed_size) for c in chunks]
        if index:
            check_chunks(Path(storage.path), index)


def unreadable_message(path: Path, error: Exception) -> str:
    """The message for a recording on which a reader raised `error`: what its files are, and the one thing to do."""
    for file in _recorded_files([path]):
        if why := _explain(file):
            name = "" if file == path else f"Of its file {file.name}: "
            return f"The bag {path} cannot be read. {name}{why}"
    reason = str(error).strip().rstrip(".") or type(error).__name__
    return (
        f"The bag {path} cannot be read: {reason}. If it was truncated (power failure, disk full), "
        "`mcap recover` or `ros2 bag reindex` may restore it."
    )


def _explain(file: Path) -> str:
    try:
        why = explain_unreadable(file, "mcap", "sqlite", "zstd")
        return why or (explain_mcap(file) if identify_file(file).name == "mcap" else "")
    except OSError as error:
        return f"It cannot be opened: {error.strerror}."


def _files(folder: Path) -> list[Path]:
    """The files of a folder without metadata.yaml: one, or those of one recording that was split."""
    files = sorted(file for file in folder.iterdir() if file.suffix in _SUFFIXES)
    # `ros2 bag record` numbers the files of a recording: name_0.mcap, name_1.mcap, ...
    recordings = {(re.sub(r"_\d+$", "", file.stem), file.suffix) for file in files}
    if len(recordings) == 1:
        return files
    if files:
        named = ", ".join(file.name for file in files[:5]) + (", ..." if files[5:] else "")
        raise BagError(f"{folder} has no {METADATA} and several recordings: {named}. Give one of them.")
    for file in sorted(folder.iterdir()):
        if file.is_file() and identify_file(file).name == "ros1-bag":
            raise BagError(f"{folder} is not a ROS 2 bag. Of its file {file.name}: {explain_unreadable(file)}")
    raise BagError(f"{folder} is not a bag: it has no {METADATA} and 0 .mcap or .db3 files.")


def _recorded_files(parts: list[Path]) -> list[Path]:
    """The files of a recording, for checks and diagnosis."""
    files = []
    for part in parts:
        if part.is_dir():
            files += sorted(f for f in part.iterdir() if f.is_file() and set(f.suffixes) & set(_SUFFIXES))
        else:
            files.append(part)
    return files


def _unpacked(folder: Path, stack: ExitStack) -> Path:
    """Unpacks a bag of compressed files (`--compression-mode file`) to a temporary folder; others are returned as is.

    `rosbags` unpacks them as well, but whatever their size.
    """
    packed = [file for file in folder.iterdir() if file.is_file() and identify_file(file).name == "zstd"]
    if not packed:
        return folder
    content = yaml.safe_load((folder / METADATA).read_text(encoding="utf-8"))
    information: dict[str, Any] = content["rosbag2_bagfile_information"]
    target = Path(stack.enter_context(TemporaryDirectory(prefix="worldstereo_bag_")))
    names = []
    for relative in information["relative_file_paths"]:
        source = folder / Path(relative).name
        name = source.name.removesuffix(".zstd")
        names.append(name)
        if source in packed:
            unpack_zstd_file(source, target / name)
        else:
            (target / name).symlink_to(source.resolve())
    information |= {"relative_file_paths": names, "compression_mode": "", "compression_format": ""}
    information.pop("files", None)
    (target / METADATA).write_text(yaml.safe_dump(content), encoding="utf-8")
    return target
