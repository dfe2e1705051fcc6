import numpy as np
import torch
from torch.nn import functional

from worldstereo_ros.models.pointmaps.correlation import CELL_PX, MOTION_CHANNELS, UNIT_PX, frame_motion


def test_the_motion_of_a_picture_is_found_between_pixels():
    texture = torch.rand(1, 3, 60, 90, generator=torch.Generator().manual_seed(0))
    texture = functional.avg_pool2d(texture, 3, 1, 1)
    steps = [(0, 0), (3, -2), (-5, 4), (9, 2)]  # of the camera's window; the picture moves the other way
    places = np.cumsum(steps, axis=0) + np.array([16, 14])
    frames = torch.stack([texture[0, :, y : y + 32, x : x + 48] for x, y in places])[None] * 2 - 1
    motion = frame_motion(frames)
    assert motion.shape == (1, 4, MOTION_CHANNELS, 4, 6)
    assert not motion[:, 0].any()
    inner = motion[0, :, :, 1:-1, 2:-2] * UNIT_PX
    for frame in (1, 2, 3):
        for axis in (0, 1):
            assert (inner[frame, axis] + steps[frame][axis]).abs().median() < 0.7
            whole = -sum(step[axis] for step in steps[: frame + 1])
            assert (inner[frame, 3 + axis] - whole).abs().median() < 1.5
    assert inner[1:, 2].median() / UNIT_PX > 0.7
    assert frames.shape[3] // CELL_PX == 4
