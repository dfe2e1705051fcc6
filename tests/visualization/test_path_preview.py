"""Previews of camera paths: their frames are those that condition the imagined views."""

import numpy as np
import pytest
from helpers.textured_wall import textured_wall_views
from PIL import Image

from worldstereo_ros.geometry.trajectories import trajectory
from worldstereo_ros.pipelines.auto import load_pipeline
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.visualization.path_preview import preview_path
from worldstereo_ros.world import WorldModel


def test_preview_equals_what_is_rendered(tmp_path):
    views = textured_wall_views()
    world = WorldModel(load_pipeline("geometric"))
    world.observe(views[0])
    poses = trajectory("right", np.eye(4), 3, distance=0.5)
    frames = preview_path(tmp_path / "a.gif", world.render_memory, views[0].camera, poses)
    for frame, view in zip(frames, world.imagine(poses, views[0].camera), strict=True):
        np.testing.assert_array_equal(frame, view.conditioning)
    with Image.open(tmp_path / "a.gif") as file:
        assert (file.n_frames, file.size) == (3, (80, 60))
    for name in ("a.png", "a.jpg"):
        preview_path(tmp_path / name, world.render_memory, views[0].camera, poses)
        with Image.open(tmp_path / name) as file:
            assert file.size[0] > 300
    with pytest.raises(InputError, match=r"has the suffix '\.webm'"):
        preview_path(tmp_path / "a.webm", world.render_memory, views[0].camera, poses)
