"""Layouts of stereo pairs in one image."""

import subprocess

import numpy as np
import pytest

from worldstereo_ros.imaging.stereo_layouts import LAYOUTS, anaglyph
from worldstereo_ros.utils.errors import InputError

RNG = np.random.default_rng(0)
LEFT, RIGHT = (RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8) for _ in range(2))


def test_full_layouts_keep_every_pixel_and_pad_odd_sizes():
    beside = LAYOUTS["sbs"].arrange(LEFT, RIGHT)
    assert beside.shape == (6, 16, 3)
    np.testing.assert_array_equal(beside[:5, :7], LEFT)
    np.testing.assert_array_equal(beside[:5, 8:15], RIGHT)
    above = LAYOUTS["tb"].arrange(LEFT, RIGHT)
    assert above.shape == (12, 8, 3)
    np.testing.assert_array_equal(above[:5, :7], LEFT)
    np.testing.assert_array_equal(above[6:11, :7], RIGHT)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("size", [(5, 7), (16, 16), (31, 18)])
def test_images_have_even_sizes(name, size):
    eyes = [RNG.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(2)]
    shape = LAYOUTS[name].arrange(*eyes).shape
    assert shape[0] % 2 == shape[1] % 2 == 0


def test_half_layouts_have_the_size_of_one_eye():
    eyes = [np.full((16, 24, 3), value, np.uint8) for value in (10, 200)]
    assert LAYOUTS["half-sbs"].arrange(*eyes).shape == (16, 24, 3)
    above = LAYOUTS["half-tb"].arrange(*eyes)
    assert above.shape == (16, 24, 3)
    assert (above[:8] == 10).all()
    assert (above[8:] == 200).all()


def test_names_are_those_that_players_know():
    assert LAYOUTS["sbs"].suffix == "_LRF_Full_SBS"
    assert {layout.packing for layout in LAYOUTS.values()} == {3, 4, None}


def test_anaglyph_is_that_of_ffmpeg():
    ffmpeg = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    left, right = (RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in range(2))
    beside = np.concatenate([left, right], axis=1)
    command = [ffmpeg, "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "32x16", "-i", "-"]
    command += ["-vf", "stereo3d=sbsl:arcd", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(command, input=beside.tobytes(), capture_output=True, check=True)
    expected = np.frombuffer(done.stdout, np.uint8).reshape(16, 16, 3)
    assert np.abs(anaglyph(left, right).astype(int) - expected).max() <= 1


def test_eyes_of_different_sizes_are_refused():
    with pytest.raises(InputError, match="equal"):
        LAYOUTS["sbs"].arrange(LEFT, RIGHT[:-1])
