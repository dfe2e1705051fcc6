"""Paths of the command line that are made from the observed views, and files of poses with their convention."""

import numpy as np
import pytest
from helpers.viewer import CAMERA

from worldstereo_ros.cli.paths import choose_path
from worldstereo_ros.cli.sources import Recording
from worldstereo_ros.geometry.capture_paths import CAPTURE_PATHS
from worldstereo_ros.geometry.trajectories import look_at, trajectory
from worldstereo_ros.geometry.views import View
from worldstereo_ros.io.path_files import write_path_file
from worldstereo_ros.utils.errors import InputError

TARGET = np.array([0.0, 0.0, 1.0])


def recording(count=5, metric=True):
    bearings = np.linspace(-0.6, 0.6, count)
    poses = [
        look_at(np.array([2 * np.sin(b), -2 * np.cos(b), 1.2]), TARGET, up=np.array([0, 0, 1.0])) for b in bearings
    ]
    image = np.zeros((CAMERA.height, CAMERA.width, 3), np.uint8)
    return Recording("walk", [View(image, CAMERA, pose, metric=metric) for pose in poses], lambda name: None)


@pytest.mark.parametrize("name", CAPTURE_PATHS)
def test_paths_of_the_observed_views(name):
    chosen = choose_path(name, recording(), 7, None)
    assert chosen.poses.shape == (7, 4, 4)
    assert chosen.description == f"7 views {name} the 5 observed views"
    assert len(choose_path(name, recording(), None, None).poses) == 21


def test_one_observed_view_or_a_length_is_refused():
    with pytest.raises(InputError, match="made from several observed views; 1 is observed"):
        choose_path("between", recording(1), None, None)
    with pytest.raises(InputError, match="remove --distance"):
        choose_path("around", recording(), None, 2.0)


def test_presets_with_a_length():
    for name in ("backward", "spiral"):
        near, far = (choose_path(name, recording(), 5, distance).poses[-1] for distance in (0.5, 1.0))
        start = recording().observed_views[-1].world_from_camera[:3, 3]
        assert np.linalg.norm(far[:3, 3] - start) == pytest.approx(2 * np.linalg.norm(near[:3, 3] - start))


def test_a_file_of_poses_says_its_unit_in_its_header(tmp_path):
    poses = trajectory("forward", np.eye(4), 3)
    write_path_file(tmp_path / "path.txt", poses, metric=False)
    np.testing.assert_allclose(
        choose_path(str(tmp_path / "path.txt"), recording(metric=False), None, None).poses, poses
    )
    with pytest.raises(InputError, match="arbitrary unit by its header, and the lengths of the source are in metres"):
        choose_path(str(tmp_path / "path.txt"), recording(), None, None)


def test_an_unknown_path_lists_all_that_there_are():
    with pytest.raises(InputError, match="spiral, between, around, spiral-around, dolly"):
        choose_path("sideways", recording(), None, None)
