"""Video files."""

import cv2
import numpy as np
import pytest
from helpers.textured_wall import textured_wall_views

from worldstereo_ros.io.video import write_video


@pytest.mark.parametrize("name", ["a.mp4", "a.gif"])
def test_video_has_all_frames(tmp_path, name):
    image = textured_wall_views()[0].image
    write_video(tmp_path / name, [np.roll(image, 20 * shift, axis=1) for shift in range(4)], fps=4)
    video = cv2.VideoCapture(str(tmp_path / name))
    assert int(video.get(cv2.CAP_PROP_FRAME_COUNT)) == 4
