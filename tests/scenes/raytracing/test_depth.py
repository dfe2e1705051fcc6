import math

import numpy as np
import pytest

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.scenes import make_path, make_scene, render_scene, seed_of
from worldstereo_ros.scenes.raytracing.depth import render_depth
from worldstereo_ros.utils.errors import InputError


@pytest.mark.parametrize(("width", "height"), [(48, 32), (37, 29)])  # whole tiles, and parts of them
def test_depth_alone_is_that_of_the_whole_rendering(width, height):
    scene = make_scene("lot", seed_of("demo", 3))  # outdoors: some rays hit nothing
    camera = Camera.from_fov(width, height, math.radians(75))
    poses = make_path(scene, "ground", 3, 0)
    depth = render_depth(scene, camera, poses)
    assert depth.shape == (3, height, width)
    assert depth.dtype == np.float32
    np.testing.assert_array_equal(depth, render_scene(scene, camera, poses, light="plain").depth.numpy())
    assert (depth == 0).any()


def test_poses_that_are_not_finite_are_refused():
    scene = make_scene("lot", seed_of("demo", 3))
    with pytest.raises(InputError):
        render_depth(scene, Camera.from_fov(16, 16, 1.0), np.full((1, 4, 4), np.nan))
