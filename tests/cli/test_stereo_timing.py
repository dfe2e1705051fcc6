"""`worldstereo stereo`: the picture keeps its time, and stays in step with the sound."""

import re
import subprocess

import numpy as np
import pytest
from helpers.damaged_video import levels, write_damaged_video
from helpers.stereo_scene import CAMERA, pose_at, view_from

from worldstereo_ros.geometry.views import View
from worldstereo_ros.io.posed_sequences import write_sequence
from worldstereo_ros.io.stereo_video import has_sound, picture_start
from worldstereo_ros.io.video_timing import read_frames, read_timing
from worldstereo_ros.pipelines.stereo.conversion import convert
from worldstereo_ros.pipelines.stereo.frame_sources import StereoInput, open_source
from worldstereo_ros.pipelines.stereo.pipeline import GeometricStereo
from worldstereo_ros.pipelines.stereo.settings import StereoSettings


@pytest.fixture
def ffmpeg():
    return pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()


def make_clip(ffmpeg, path, rate, seconds, delay_s=0.0):
    """A video with sound that starts at 0 and a picture that starts at `delay_s`."""
    command = [ffmpeg, "-v", "error", "-itsoffset", str(delay_s)]
    command += ["-f", "lavfi", "-i", f"testsrc=size=64x48:rate={rate}:duration={seconds}"]
    command += ["-f", "lavfi", "-i", f"sine=frequency=440:duration={delay_s + seconds}", "-fps_mode", "passthrough"]
    subprocess.run([*command, "-pix_fmt", "yuv420p", "-c:v", "libx264", "-c:a", "aac", str(path)], check=True)
    return path


def convert_clip(clip, out):
    """The file and the description of its stereo video, made of depth that is the same everywhere."""
    source = open_source(clip)
    read = source.read

    def with_depth(start):
        return (StereoInput(f.image, np.full(f.image.shape[:2], 2, np.float32), None, f.repeats) for f in read(start))

    object.__setattr__(source, "read", with_depth)
    done = convert(source, GeometricStereo(source.camera, StereoSettings(base=0.1)), out)
    return done.files[0], done.description


def test_picture_that_starts_after_the_sound_does_so_in_the_stereo_video(ffmpeg, tmp_path):
    clip = make_clip(ffmpeg, tmp_path / "late.mp4", 10, 0.6, delay_s=0.5)
    assert picture_start(clip) == pytest.approx(0.5, abs=0.01)
    video, about = convert_clip(clip, tmp_path / "out")
    assert about["sound"] == "copied"
    assert has_sound(video)
    assert picture_start(video) == pytest.approx(0.5, abs=0.01)
    assert len(read_timing(video)) == 6


def test_picture_that_starts_with_the_sound_has_no_delay(ffmpeg, tmp_path):
    clip = make_clip(ffmpeg, tmp_path / "clip.mp4", 10, 0.3)
    assert picture_start(clip) == pytest.approx(0, abs=0.03)  # AAC starts up to a block earlier


def test_video_of_a_high_rate_lasts_as_long(ffmpeg, tmp_path):
    clip = make_clip(ffmpeg, tmp_path / "fast.mp4", 240, 0.1)
    video, about = convert_clip(clip, tmp_path / "out")
    assert about["frames_read"] == 24
    assert about["frames_written"] == len(read_timing(video)) == 12
    assert about["frames_per_second"] == 120
    shown = subprocess.run([ffmpeg, "-i", video], capture_output=True, check=False).stderr
    assert re.search(rb"Video: .* 120 fps", shown)
    assert any("240 frames a second" in note and "in step" in note for note in about["notes"])


def test_sequence_with_a_repeated_stamp_keeps_its_time(tmp_path):
    views = []
    for index in range(6):
        image, depth = view_from(0.06 * index)
        views.append(View(image, CAMERA, pose_at(0.06 * index), depth))
    write_sequence(tmp_path / "walk", views)
    stamps = [100.0, 100.5, 101.0, 101.0, 102.0, 102.5]
    lines = "".join(f"{number} {stamp}\n" for number, stamp in enumerate(stamps))
    (tmp_path / "walk" / "timestamps.txt").write_text(lines)
    source = open_source(tmp_path / "walk")
    assert source.rate == 2
    assert [frame.repeats for frame in source.read(0)] == [1] * 6
    assert any("1 of the 6 stamps of walk" in note for note in source.notes)
    stamps = [100.0, 99.0, 98.0, 97.0, 96.0, 95.0]
    (tmp_path / "walk" / "timestamps.txt").write_text("".join(f"{n} {stamp}\n" for n, stamp in enumerate(stamps)))
    source = open_source(tmp_path / "walk")
    assert source.rate == 10
    assert any("Most stamps of walk do not ascend" in note for note in source.notes)


def test_damaged_packets_leave_picture_and_sound_in_step(tmp_path):
    clip = tmp_path / "clip.mp4"
    write_damaged_video(clip, 12, {0, 1, 2, 6, 7, 8}, sound=True)
    source = open_source(clip)
    assert "clip.mp4 is truncated or damaged: 6 of 12 frames can be decoded, and these are used." in source.notes
    estimator = lambda image, camera: np.full(image.shape[:2], 2, np.float32)  # noqa: E731
    done = convert(source, GeometricStereo(source.camera, StereoSettings()), tmp_path / "out", estimator=estimator)
    video = done.files[0]
    assert picture_start(video) == pytest.approx(0.3, abs=0.02)  # three are lost before the first
    assert levels(frame[:, :32] for frame in read_frames(video)) == [3, 4, 5, 5, 5, 5, 9, 10, 11]
    assert done.description["sound"] == "copied"
