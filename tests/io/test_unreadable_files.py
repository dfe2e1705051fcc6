"""Every reader of files says what an unreadable file is, and the one thing to do."""

from pathlib import Path

import pytest

from worldstereo_ros.cli.panorama import read_distance
from worldstereo_ros.io.bags.files import Bag
from worldstereo_ros.io.files import read_json
from worldstereo_ros.io.images import image_size, read_depth, read_image
from worldstereo_ros.io.point_clouds import read_point_cloud
from worldstereo_ros.io.video import read_video, video_size
from worldstereo_ros.io.view_labels import read_provenance
from worldstereo_ros.memory.archive import load_archive
from worldstereo_ros.utils.errors import WorldStereoError


def _read_bag(path: Path) -> None:
    with Bag(path):
        pass


READERS = {
    "a.png": read_image,
    "b.png": read_depth,
    "c.png": image_size,
    "d.png": read_provenance,
    "a.npy": read_distance,
    "a.mcap": _read_bag,
    "a.db3": _read_bag,
    "a.json": read_json,
    "a.ply": read_point_cloud,
    "a.pcd": read_point_cloud,
    "a.mp4": video_size,
    "b.mp4": lambda path: list(read_video(path)),
    "a.wsmap": load_archive,
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"ab" * 32 + b"\nsize 9\n", "`git lfs pull`"),
        (b"<!DOCTYPE html>\n<html><body>Log in</body></html>", "download the raw file"),
        (b"\xfd7zXZ\0" + bytes(range(200)), "an xz archive. Unpack it first."),
    ],
)
def test_each_reader_says_what_the_file_is(tmp_path, name, content, sentence):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(WorldStereoError) as caught:
        READERS[name](file)
    assert sentence in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize("playlist", ["#EXTM3U\nhttp://localhost/a.ts\n", "ffconcat version 1.0\nfile 'other.mp4'\n"])
def test_a_playlist_is_no_video(tmp_path, playlist):
    """FFmpeg opens what a playlist names, also on servers, whatever the suffix of the playlist."""
    (tmp_path / "a.mp4").write_text(playlist)
    with pytest.raises(WorldStereoError, match="It is a text file that begins with"):
        video_size(tmp_path / "a.mp4")
