"""Units of depth: their names, and depth that cannot be right by its size or by the camera's motion."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.depth_units import check_depth, implausible_depth, motion_depth_factor, parse_depth_unit
from worldstereo_ros.geometry.poses import pose_from_quaternion
from worldstereo_ros.geometry.views import View
from worldstereo_ros.utils.errors import InputError

CAMERA = Camera(80, 60, 60.0, 60.0, 39.5, 29.5)
LOW, HIGH = np.array([-3.0, -1.0, -2.5]), np.array([3.0, 1.6, 2.5])  # a room, y down


def room_view(x=0.0, z=0.0, yaw=0.0, noise=0.0):
    """A view of the room with exact or noisy depth."""
    pose = pose_from_quaternion((x, 0, z), (0, np.sin(yaw / 2), 0, np.cos(yaw / 2)))
    rays = CAMERA.rays().astype(np.float64) @ pose[:3, :3].T
    with np.errstate(divide="ignore"):
        planes = np.where(rays > 0, (HIGH - pose[:3, 3]) / rays, (LOW - pose[:3, 3]) / rays)
    depth = planes.min(axis=-1)
    depth = depth * (1 + noise * np.random.default_rng(0).normal(size=depth.shape))
    return View(np.zeros((60, 80, 3), np.uint8), CAMERA, pose, depth.astype(np.float32))


def scaled(view, factor):
    return replace(view, depth=view.depth * np.float32(factor))


@pytest.mark.parametrize(
    ("text", "metres"), [("auto", None), ("", None), ("m", 1.0), ("mm", 1e-3), ("0.1mm", 1e-4), (" 0.00025", 0.00025)]
)
def test_units_by_name_and_number(text, metres):
    assert parse_depth_unit(text) == metres


@pytest.mark.parametrize("text", ["cm", "0", "-1", "nan", "inf", "1 mm"])
def test_unknown_units_are_rejected(text):
    with pytest.raises(InputError, match=r"auto, m, mm, 0\.1mm or a positive number"):
        parse_depth_unit(text)


def test_depth_that_no_room_has_is_implausible():
    assert implausible_depth(room_view().depth) == ""
    assert "25" in implausible_depth(np.full((60, 80), 25.0, np.float32))
    assert "0.004" in implausible_depth(np.full((60, 80), 0.004, np.float32))
    assert implausible_depth(np.zeros((60, 80), np.float32)) == ""


@pytest.mark.parametrize("factor", [0.1, 0.25, 10.0, 4.0, 1e-3])
def test_motion_tells_a_wrong_unit(factor):
    first, second = room_view(), room_view(x=0.2, z=0.3, yaw=0.1)
    assert motion_depth_factor(first, second) == 1.0
    assert motion_depth_factor(scaled(first, 1 / factor), scaled(second, 1 / factor)) == factor


def test_motion_tells_nothing_of_noise_and_of_turning_in_place():
    first, second = room_view(noise=0.03), room_view(x=0.2, z=0.3, yaw=0.1, noise=0.03)
    assert motion_depth_factor(first, second) == 1.0
    turned = room_view(yaw=0.3)
    assert motion_depth_factor(scaled(room_view(), 10), scaled(turned, 10)) == 1.0
    assert motion_depth_factor(first, room_view(yaw=np.pi)) == 1.0  # no overlap


def test_check_depth_warns_with_the_option():
    views = [room_view(), room_view(x=0.2, z=0.3), room_view(x=0.4, z=0.6)]
    assert check_depth(views, "The depth", "--depth-unit") == ""
    warning = check_depth([scaled(view, 10) for view in views], "The depth", "--depth-unit")
    assert "seems 10 times too far" in warning
    assert "--depth-unit" in warning
    assert "4 times too near" in check_depth([scaled(view, 0.25) for view in views], "The depth", "--depth-unit")
    one = check_depth([scaled(views[0], 20)], "The depth", "--depth-unit")  # one view: by its size
    assert "implausible: its median" in one
    assert check_depth([replace(views[0], depth=None)], "The depth", "x") == ""
    estimated = [replace(scaled(v, 10), estimated=np.ones((60, 80), bool)) for v in views]
    assert check_depth(estimated, "The depth", "x") == ""


@pytest.mark.parametrize("size", [0.02, 20.0])
def test_depth_that_the_motion_confirms_is_plausible_at_any_size(size):
    """A camera close to a small thing, or outdoors: all lengths are those of the room times a number, poses too."""

    def view(x, z):
        pose = pose_from_quaternion((x * size, 0, z * size), (0, 0, 0, 1))
        return replace(scaled(room_view(x=x, z=z), size), world_from_camera=pose)

    views = [view(0.0, 0.0), view(0.2, 0.3), view(0.4, 0.6)]
    assert implausible_depth(views[0].depth) != ""
    assert check_depth(views, "The depth", "--depth-unit") == ""
    still = [views[0], replace(views[0])]  # no motion that could confirm it
    assert "implausible" in check_depth(still, "The depth", "--depth-unit")


def test_one_pair_that_differs_does_not_hide_a_wrong_unit():
    views = [scaled(room_view(x=0.2 * i, z=0.3 * i), 0.1 if i < 5 else 0.25) for i in range(7)]
    factors = [motion_depth_factor(one, other) for one, other in pairwise(views)]
    assert factors.count(10.0) == 4
    assert 4.0 in factors
    assert "seems 10 times too near" in check_depth(views, "The depth", "--depth-unit")
