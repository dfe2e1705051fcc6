"""Recognises what a file really is from its first bytes, so that an unreadable file gets the advice that helps.

A recording, picture or weight file is often not what its name says: a Git LFS pointer, a login page saved by a browser,
an archive that was not unpacked. Readers call `explain_unreadable` when they fail, and end their message with its
sentence.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

HEAD_BYTES = 4096  # enough for every signature, and for the text of a Git LFS pointer


@dataclass(frozen=True)
class FileKind:
    """What a file is.

    Attributes:
        name: identifier, such as "lfs-pointer" or "png"; "unknown" if the bytes match nothing.
        description: noun phrase for messages, such as "a ROS 1 bag".
        advice: sentence that says what to do with it; empty if that depends on what was expected.
    """

    name: str
    description: str
    advice: str = ""


UNKNOWN = FileKind("unknown", "a file of unknown kind")
_COPY_AGAIN = "Its download or copy did not finish; fetch it again."
_UNPACK = "Unpack it first."

_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", FileKind("png", "a PNG image")),
    (b"\xff\xd8\xff", FileKind("jpeg", "a JPEG image")),
    (b"GIF8", FileKind("gif", "a GIF image", "Convert it to PNG or JPEG, or to MP4 if it moves.")),
    (b"BM", FileKind("bmp", "a BMP image")),
    (b"II*\0", FileKind("tiff", "a TIFF image")),
    (b"MM\0*", FileKind("tiff", "a TIFF image")),
    (b"II+\0", FileKind("bigtiff", "a BigTIFF image", "Convert it to a TIFF of less than 4 GB, or to PNG.")),
    (b"\x76\x2f\x31\x01", FileKind("exr", "an OpenEXR image", "Convert it to a 16-bit PNG.")),
    (b"%!PS", FileKind("postscript", "a PostScript (EPS) program", "Convert it to PNG or JPEG.")),
    (b"\xc5\xd0\xd3\xc6", FileKind("postscript", "a PostScript (EPS) program", "Convert it to PNG or JPEG.")),
    (b"%PDF", FileKind("pdf", "a PDF document", "Export its picture as PNG or JPEG.")),
    (b"\x89MCAP0\r\n", FileKind("mcap", "an MCAP recording")),
    (b"SQLite format 3\0", FileKind("sqlite", "an SQLite database")),
    (
        b"#ROSBAG V",
        FileKind(
            "ros1-bag", "a ROS 1 bag", "Convert it: `pip install rosbags`, then `rosbags-convert --src A --dst B`."
        ),
    ),
    (b"\x93NUMPY", FileKind("npy", "a NumPy array (.npy)")),
    (b"\x89HDF\r\n\x1a\n", FileKind("hdf5", "an HDF5 file")),
    (b"ply\n", FileKind("ply", "a PLY file")),
    (b"ply\r\n", FileKind("ply", "a PLY file")),
    (b"PK\x03\x04", FileKind("zip", "a ZIP archive", _UNPACK)),
    (b"PK\x05\x06", FileKind("zip", "an empty ZIP archive", _COPY_AGAIN)),
    (b"\x1f\x8b", FileKind("gzip", "a gzip archive", _UNPACK)),
    (b"BZh", FileKind("bzip2", "a bzip2 archive", _UNPACK)),
    (b"\xfd7zXZ\0", FileKind("xz", "an xz archive", _UNPACK)),
    (b"\x28\xb5\x2f\xfd", FileKind("zstd", "a Zstandard archive", "Unpack it first (`zstd -d`).")),
    (b"\x04\x22\x4d\x18", FileKind("lz4", "an LZ4 archive", "Unpack it first (`lz4 -d`).")),
    (b"7z\xbc\xaf\x27\x1c", FileKind("7z", "a 7-Zip archive", _UNPACK)),
    (b"Rar!", FileKind("rar", "a RAR archive", _UNPACK)),
    (b"\x1a\x45\xdf\xa3", FileKind("video", "a Matroska or WebM video")),
)
_HTML = re.compile(rb"\s*(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.DOTALL)


def identify(head: bytes, size: int) -> FileKind:
    """Recognises a file by its first bytes.

    Args:
        head: the first bytes of the file, `HEAD_BYTES` or all of them.
        size: size of the whole file in bytes.

    Returns:
        The kind; its name is "unknown" if the bytes match nothing.
    """
    if size == 0:
        return FileKind("empty", "an empty file (0 bytes)", _COPY_AGAIN)
    for signature, kind in _SIGNATURES:
        # A BMP says its size: two letters alone are found in any text.
        if head.startswith(signature) and (kind.name != "bmp" or int.from_bytes(head[2:6], "little") == size):
            return kind
    if head[4:8] == b"ftyp":
        if head[8:12] in (b"heic", b"heix", b"mif1", b"msf1", b"heim"):
            return FileKind("heif", "a HEIF (HEIC) photograph", "Export it as JPEG.")
        if head[8:12] in (b"avif", b"avis"):
            return FileKind("avif", "an AVIF image", "Convert it to PNG or JPEG.")
        return FileKind("video", "an MP4 or QuickTime video")
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return FileKind("webp", "a WebP image")
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return FileKind("video", "an AVI video")
    if head[257:262] == b"ustar":
        return FileKind("tar", "a tar archive", _UNPACK)
    if head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= 100_000_000:
        return FileKind("safetensors", "a safetensors file")
    if not head.strip(b"\0"):
        return FileKind("zeros", "filled with zero bytes", _COPY_AGAIN)
    return _identify_text(head, cut=size > len(head))


def _identify_text(head: bytes, *, cut: bool) -> FileKind:
    """Recognises text that stands in place of a file; `cut` if the file continues after the head."""
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        match = re.search(rb"^size (\d{1,18})$", head, re.MULTILINE)
        of = f" to a file of {int(match[1])} bytes" if match else ""
        advice = "Install git-lfs and run `git lfs pull` in its repository."
        return FileKind("lfs-pointer", f"a Git LFS pointer{of}, not the file itself", advice)
    if head.startswith((b"/annex/objects/", b"../.git/annex/")):
        return FileKind("annex-pointer", "a git-annex pointer, not the file itself", "Run `git annex get` on it.")
    if _HTML.match(head.removeprefix(b"\xef\xbb\xbf")):
        return FileKind(
            "html",
            "an HTML page, not the file itself",
            "The server answered with a page (of a login, an error, or the file's description); "
            "download the raw file from there.",
        )
    if head.lstrip().startswith(b"<?xml") and b"<Error" in head:
        return FileKind("xml-error", "an error message of a server (XML), not the file itself", "Download it again.")
    if (head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05") and len(head) > 1:
        return FileKind("pickle", "a Python pickle")
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if not cut or error.start < len(head) - 3:  # else the end of the head cut a character
            return UNKNOWN
        text = head[: error.start].decode("utf-8")
    if not all(character.isprintable() or character in "\r\n\t\f" for character in text):
        return UNKNOWN
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return FileKind("text", f"a text file that begins with '{first[:40]}'")


def identify_file(path: str | Path) -> FileKind:
    """Recognises a file by its first bytes.

    Raises:
        OSError: the file cannot be opened.
    """
    path = Path(path)
    with path.open("rb") as file:
        return identify(file.read(HEAD_BYTES), path.stat().st_size)


def explain_unreadable(path: str | Path, *expected: str) -> str:
    """Says why a file could not be read, for the end of an error message.

    Args:
        path: the file that a reader failed on.
        expected: names of the kinds that the reader reads, such as "mcap", "sqlite". A file of such a kind is damaged
            in a way that its first bytes do not show.

    Returns:
        "It is a Git LFS pointer, ... Run `git lfs pull` ...", "It does not exist.", and so on: one or two sentences,
        empty if the first bytes say nothing.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return "It is a folder; a file was expected."
        kind = identify_file(path)
    except FileNotFoundError:
        return "It does not exist."
    except OSError as error:
        return f"It cannot be opened: {error.strerror}."
    return explain_kind(kind, *expected)


def explain_kind(kind: FileKind, *expected: str) -> str:
    """The sentence of `explain_unreadable` for bytes that `identify` recognised; empty if they say nothing."""
    if kind.name == "unknown" or kind.name in expected:
        return ""
    return f"It is {kind.description}. {kind.advice}".rstrip()
