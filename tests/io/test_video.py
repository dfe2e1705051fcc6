"""Video files."""

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.damaged_video import levels, write_damaged_video
from helpers.textured_wall import textured_wall_views
from imageio_ffmpeg import get_ffmpeg_exe

from worldstereo_ros.io.files import DatasetError
from worldstereo_ros.io.video import read_video, read_video_frame, video_size, write_video


@pytest.mark.parametrize("name", ["a.mp4", "a.gif"])
def test_video_has_all_frames(tmp_path, name):
    image = textured_wall_views()[0].image
    write_video(tmp_path / name, [np.roll(image, 20 * shift, axis=1) for shift in range(4)], fps=4)
    video = cv2.VideoCapture(str(tmp_path / name))
    assert int(video.get(cv2.CAP_PROP_FRAME_COUNT)) == 4


@pytest.mark.parametrize("name", [b"a\xff\xfe.mp4", b"a\xff.gif", b"-y.mp4", b"a:b %d.mp4"])
def test_names_of_any_bytes_are_written_and_read(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path(os.fsdecode(name))
    image = textured_wall_views()[0].image[:59, :79]
    write_video(path, [image] * 2 + [255 - image], fps=4)
    assert list(Path().iterdir()) == [path]
    assert len(list(read_video(path))) >= 2  # a GIF shows equal frames as one


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from worldstereo_ros.io.video import write_video
from worldstereo_ros.utils.atomic_files import WriteError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
noise = np.random.default_rng(0).integers(0, 256, (24, 96, 128, 3), dtype=np.uint8)
try:
    write_video(Path(sys.argv[1]), list(noise))
except WriteError as error:
    print("rejected:", error)
"""


@pytest.mark.parametrize("limit", [4_000, 60_000])
def test_full_disk_leaves_no_video(tmp_path, limit):
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "a.mp4"), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "rejected:" in done.stdout
    assert "of its 24 frames are in the file" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stream", [False, True])
def test_video_is_read_from_any_frame(tmp_path, stream):
    """A recording of a stream has neither a count of its frames nor an index to find one by."""
    levels = [20, 60, 100, 140, 180, 220]
    images = [np.full((48, 64, 3), level, np.uint8) for level in levels]
    path = tmp_path / "a.mp4"
    write_video(path, images, fps=5)
    if stream:
        path = tmp_path / "a.webm"
        command = [get_ffmpeg_exe(), "-loglevel", "error", "-i", str(tmp_path / "a.mp4"), "-c:v", "libvpx"]
        subprocess.run([*command, "-f", "webm", "-live", "1", str(path)], check=True)
        assert cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FRAME_COUNT) < 1
    assert video_size(path) == (64, 48, 6, 5.0)
    for start in (0, 1, 4, 5):
        assert read_video_frame(path, start).mean() == pytest.approx(levels[start], abs=8)
    with pytest.raises(DatasetError, match="ends before frame 6"):
        read_video_frame(path, 6)


def test_video_of_a_phone_held_upright_is_read_upright(tmp_path):
    images = [np.zeros((48, 64, 3), np.uint8)] * 2
    write_video(tmp_path / "a.mp4", images, fps=5)
    command = [get_ffmpeg_exe(), "-loglevel", "error", "-display_rotation", "90", "-i", str(tmp_path / "a.mp4")]
    subprocess.run([*command, "-c", "copy", str(tmp_path / "b.mov")], check=True)
    assert video_size(tmp_path / "b.mov")[:2] == (48, 64)
    assert next(read_video(tmp_path / "b.mov")).shape == (64, 48, 3)


def test_what_is_no_video_is_named(tmp_path):
    (tmp_path / "a.mp4").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(DatasetError, match=r"not a readable video\. It is a Git LFS pointer"):
        video_size(tmp_path / "a.mp4")


def test_frames_after_damaged_packets_are_read_and_the_lost_ones_counted(tmp_path):
    path, lost = tmp_path / "a.mp4", []
    write_damaged_video(path, 20, {0, 7, 8, 9, 10, 15})
    assert levels(read_video(path, lost.append)) == [1, 2, 3, 4, 5, 6, 11, 12, 13, 14, 16, 17, 18, 19]
    assert lost == [6]
    write_damaged_video(path, 20, {7, 8})
    for number in (0, 6, 9, 12, 19):
        assert levels([read_video_frame(path, number)]) == [number]
    with pytest.raises(DatasetError, match="ends before frame 8, or is damaged there"):
        read_video_frame(path, 8)
    write_damaged_video(path, 20, set())
    assert levels(read_video(path, lost.append)) == list(range(20))
    assert lost == [6]


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_what_is_there_of_a_video_that_is_cut_off_is_read(tmp_path, suffix):
    whole, path, lost = tmp_path / "whole.mp4", tmp_path / f"cut.{suffix}", []
    write_damaged_video(whole, 20, set())
    command = [get_ffmpeg_exe(), "-v", "error", "-i", str(whole), "-c", "copy", "-movflags", "+faststart", str(path)]
    subprocess.run(command, check=True)
    path.write_bytes(path.read_bytes()[: int(0.7 * path.stat().st_size)])
    found = levels(read_video(path, lost.append))
    assert 5 <= len(found) < 20
    assert found == list(range(len(found)))
    assert lost == [20 - len(found)]
