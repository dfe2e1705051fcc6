"""Video files."""

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.textured_wall import textured_wall_views

from worldstereo_ros.io.video import read_video, write_video


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
