"""When frames of a video are shown, and how they are written at a constant rate."""

import numpy as np
import pytest

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


@pytest.mark.parametrize("times", [[0.0, 0.0, 0.0], [0.0, np.nan, 0.1], [0.2, 0.1, 0.0], [0.0]])
def test_without_usable_times_the_header_counts(times):
    timing = plan_timing(np.array(times), 25.0)
    assert timing.rate == 25
    assert (timing.repeats == 1).all()
    np.testing.assert_allclose(timing.times_s, np.arange(len(times)) / 25)


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
