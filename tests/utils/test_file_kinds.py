"""Recognition of files that are not what their name says."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from worldstereo_ros.utils.file_kinds import HEAD_BYTES, explain_unreadable, identify, identify_file

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"ab" * 32 + b"\nsize 26012345\n"


def _image(kind: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (4, 3)).save(out, kind)
    return out.getvalue()


def _zip() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a", "b")
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"", "empty"),
        (POINTER, "lfs-pointer"),
        (b"/annex/objects/MD5E-s12--ab.mcap\n", "annex-pointer"),
        (b"\n<!DOCTYPE html>\n<html><body>Log in</body></html>", "html"),
        (b"\xef\xbb\xbf<HTML lang=en>", "html"),
        (b"<!-- saved --><html>", "html"),
        (b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code></Error>', "xml-error"),
        (bytes(100), "zeros"),
        (_image("PNG"), "png"),
        (_image("JPEG"), "jpeg"),
        (_image("WEBP"), "webp"),
        (_image("TIFF"), "tiff"),
        (_image("BMP"), "bmp"),
        (b"BMW is a text", "text"),
        (_image("EPS"), "postscript"),
        (b"#ROSBAG V2.0\n\x45\0\0\0", "ros1-bag"),
        (_zip(), "zip"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "heif"),
        (b"\0\0\0\x18ftypisom\0\0\0\0", "video"),
        (b"\x10\0\0\0\0\0\0\0{\"a\":{\"b\":1}}   ", "safetensors"),
        (b"\x80\x02}q\0.", "pickle"),
        ("# Größe\n1 2 3\n".encode(), "text"),
        (bytes(range(256)), "unknown"),
        (b"\x80", "unknown"),
    ],
)  # fmt: skip
def test_identify_recognises_each_kind_by_its_first_bytes(content, name):
    assert identify(content[:HEAD_BYTES], len(content)).name == name


def test_a_character_cut_by_the_end_of_the_head_is_still_text():
    content = b"a" * (HEAD_BYTES - 1) + "ö".encode() * 3
    assert identify(content[:HEAD_BYTES], HEAD_BYTES).name == "unknown"  # the file ends within the character
    assert identify(content[:HEAD_BYTES], len(content)).name == "text"


def test_explain_unreadable_names_what_it_is_and_the_one_thing_to_do(tmp_path):
    file = tmp_path / "drive.mcap"
    assert explain_unreadable(file) == "It does not exist."
    assert "It is a folder" in explain_unreadable(tmp_path)
    file.write_bytes(POINTER)
    sentence = explain_unreadable(file, "mcap")
    assert sentence.startswith("It is a Git LFS pointer to a file of 26012345 bytes")
    assert "`git lfs pull`" in sentence
    file.write_bytes(b"<html>")
    assert "download the raw file" in explain_unreadable(file, "mcap")
    file.write_bytes(b"")
    assert "fetch it again" in explain_unreadable(file, "mcap")


def test_explain_unreadable_says_nothing_of_an_expected_or_unknown_kind(tmp_path):
    file = tmp_path / "a.npz"
    np.savez(file, a=np.zeros(2))
    assert identify_file(file).name == "zip"
    assert explain_unreadable(file, "zip") == ""
    assert "It is a ZIP archive. Unpack it first." in explain_unreadable(file, "mcap")
    file.write_bytes(bytes(range(256)))
    assert explain_unreadable(file, "zip") == ""
