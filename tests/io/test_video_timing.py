"""When frames of a video are shown, and how they are written at a constant rate."""

import subprocess

import numpy as np
import pytest
from helpers.damaged_video import levels, write_damaged_video

from worldstereo_ros.io.files import DatasetError
from worldstereo_ros.io.video import write_video
from worldstereo_ros.io.video_timing import plan_timing, read_frames, read_timing


def test_constant_rate_is_kept():
    timing = plan_timing(np.arange(10) / 29.97, 29.97)
    assert not timing.variable
    assert timing.rate == pytest.approx(30000 / 1001)
    assert (timing.repeats == 1).all()


def test_frames_of_a_variable_rate_keep_their_time():
    times = np.concatenate([np.arange(10) / 30, 10 / 30 + np.arange(10) / 10])
    timing = plan_timing(times, 20.0)
    assert timing.variable
    assert timing.rate == pytest.approx(30)
    shown = np.cumsum(timing.repeats) - timing.repeats
    np.testing.assert_allclose(shown / timing.rate, times - times[0], atol=0.5 / timing.rate)


def test_a_pause_is_filled_with_the_frame_before():
    timing = plan_timing(np.append(np.arange(5), np.arange(5) + 100) / 25, 25.0)
    assert timing.variable
    assert timing.repeats[4] == 96


@pytest.mark.parametrize(("rate", "every"), [(240, 2), (239.76, 2), (144, 2), (300, 3), (120, 1), (119.88, 1)])
@pytest.mark.parametrize("stamped", [True, False])
def test_a_rate_above_the_limit_keeps_its_duration(rate, every, stamped):
    timing = plan_timing(np.arange(600) / rate * stamped, rate)
    assert timing.every == every
    assert timing.rate == pytest.approx(rate / every, rel=1e-3)
    np.testing.assert_array_equal(timing.repeats, np.arange(600) % every == 0)
    assert timing.repeats.sum() / timing.rate == pytest.approx(600 / rate, rel=1e-3)


@pytest.mark.parametrize(
    ("number", "stamp"),
    [
        (6, 2.5),
        (5, 3.0),
        (6, np.nan),
        (6, -7.0),
        (6, 1e9),
        (0, 99.0),
        (1, 0.0),
        (11, 5.0),
        (10, 5.5),
        (11, 0),
    ],
)
def test_a_stamp_that_does_not_ascend_is_repaired(number, stamp):
    times = np.arange(12) / 2
    times[number] = stamp
    timing = plan_timing(times, 10.0)
    np.testing.assert_allclose(timing.times_s, np.arange(12) / 2)
    assert timing.rate == 2
    assert (timing.repeats == 1).all()
    assert timing.repaired == 1
    assert "1 of the 12 stamps of walk do not ascend" in timing.stamp_notes("walk")[0]


def test_repaired_times_of_a_variable_rate_stay_between_their_neighbours():
    times = np.array([0.0, 0.1, 0.2, 0.2, 1.0, 1.1, 1.1, 1.1, 1.5, 1.6])
    timing = plan_timing(times, 10.0)
    np.testing.assert_allclose(timing.times_s, [0, 0.1, 0.2, 0.6, 1.0, 1.1, 1.1 + 0.4 / 3, 1.1 + 0.8 / 3, 1.5, 1.6])
    assert timing.variable
    assert timing.repaired == 3


def test_good_stamps_need_no_word():
    assert plan_timing(np.arange(12) / 2, 10.0).stamp_notes("walk") == []
    assert plan_timing(np.zeros(1), 10.0).stamp_notes("walk") == []


@pytest.mark.parametrize("times", [[0.0, 0.0, 0.0], [0.0, np.nan, np.nan, 0.1], [0.2, 0.1, 0.0], [0.0]])
def test_without_usable_times_the_header_counts(times):
    timing = plan_timing(np.array(times), 25.0)
    assert timing.rate == 25
    assert (timing.repeats == 1).all()
    np.testing.assert_allclose(timing.times_s, np.arange(len(times)) / 25)
    assert not timing.stamped
    assert len(times) == 1 or "25 frames a second are assumed" in timing.stamp_notes("walk")[0]


@pytest.mark.parametrize("rate", [0.0, -1.0, np.nan, np.inf, 90000.0])
def test_a_header_without_a_rate_is_not_believed(rate):
    assert plan_timing(np.zeros(5), rate).rate == 30


def test_video_is_read_from_a_frame_on(tmp_path):
    frames = [np.full((32, 48, 3), 20 * k, np.uint8) for k in range(8)]
    write_video(tmp_path / "a.mp4", frames, fps=10)
    timing = read_timing(tmp_path / "a.mp4")
    assert len(timing) == timing.announced == 8
    assert timing.rate == pytest.approx(10)
    rest = list(read_frames(tmp_path / "a.mp4", 5))
    assert [round(float(frame.mean()) / 20) for frame in rest] == [5, 6, 7]
    assert list(read_frames(tmp_path / "a.mp4", 20)) == []


def test_truncated_video_is_refused(tmp_path):
    write_video(tmp_path / "a.mp4", [np.zeros((32, 48, 3), np.uint8)] * 4)
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:-200])
    with pytest.raises(DatasetError, match=r"cut\.mp4"):
        read_timing(tmp_path / "cut.mp4")


def test_frames_before_a_damaged_packet_are_read(tmp_path):
    ffmpeg = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    command = [ffmpeg, "-v", "error", "-f", "lavfi", "-i", "testsrc2=size=320x240:rate=10:duration=2"]
    command += ["-pix_fmt", "yuv420p", "-c:v", "libx264", "-movflags", "+faststart", str(tmp_path / "whole.mp4")]
    subprocess.run(command, check=True)
    content = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) // 5])
    timing = read_timing(tmp_path / "cut.mp4")
    assert 0 < len(timing) < timing.announced == 20
    assert sum(1 for _ in read_frames(tmp_path / "cut.mp4")) == len(timing)
    assert sum(1 for _ in read_frames(tmp_path / "cut.mp4", 1)) == len(timing) - 1


def test_frames_after_damaged_packets_keep_their_time(tmp_path):
    write_damaged_video(tmp_path / "a.mp4", 20, {7, 8, 9})
    timing = read_timing(tmp_path / "a.mp4")
    kept = [*range(7), *range(10, 20)]
    np.testing.assert_allclose(timing.times_s, np.array(kept) / 10, atol=1e-3)
    assert timing.lost == 3
    assert timing.repeats.tolist() == [1] * 6 + [4] + [1] * 10
    assert timing.damage_notes("a")[0].startswith("a is truncated or damaged: 17 of 20 frames can be decoded")
    assert levels(read_frames(tmp_path / "a.mp4")) == kept
    assert levels(read_frames(tmp_path / "a.mp4", 8)) == kept[8:]
