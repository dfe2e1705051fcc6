"""Conversions by tf_transformations and sensor_msgs_py, which a full ROS has, equal those of this package.

Neither package is on PyPI, so these tests are skipped in the environment of `make setup`.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from sensor_msgs.msg import PointField
from std_msgs.msg import Header

from worldstereo_ros.ros.conversions import clouds, messages, rotations

RANDOM = np.random.default_rng(5)
needs_tf_transformations = pytest.mark.skipif(
    rotations.tf_transformations is None, reason="tf_transformations is not installed (it comes with a full ROS)"
)
needs_sensor_msgs_py = pytest.mark.skipif(
    clouds.point_cloud2 is None, reason="sensor_msgs_py is not installed (it comes with a full ROS)"
)


def quaternions() -> list[np.ndarray]:
    special = [(0, 0, 0, 1), (1, 0, 0, 0), (0, -1, 0, 0), (0, 0, 0, -1), (0.5, -0.5, 0.5, -0.5)]
    random = RANDOM.normal(size=(50, 4))
    return [np.array(q, float) for q in special] + list(random / np.linalg.norm(random, axis=1, keepdims=True))


@needs_tf_transformations
def test_pose_from_quaternion_equals_tf_transformations(monkeypatch):
    for quaternion in quaternions():
        for scale in (1.0, 1.005):
            with_package = rotations.pose_from_quaternion((1.0, -2.0, 3.0), quaternion * scale)
            with monkeypatch.context() as patch:
                patch.setattr(rotations, "tf_transformations", None)
                without = rotations.pose_from_quaternion((1.0, -2.0, 3.0), quaternion * scale)
            np.testing.assert_allclose(with_package, without, atol=1e-12)


@needs_tf_transformations
def test_quaternion_from_pose_equals_tf_transformations(monkeypatch):
    for quaternion in quaternions():
        pose = rotations.pose_from_quaternion((1.0, -2.0, 3.0), quaternion)
        translation, with_package = rotations.quaternion_from_pose(pose)
        with monkeypatch.context() as patch:
            patch.setattr(rotations, "tf_transformations", None)
            expected_translation, without = rotations.quaternion_from_pose(pose)
        np.testing.assert_array_equal(translation, expected_translation)
        # A rotation by 180 degrees has two quaternions with w = 0.
        sign = np.sign(with_package @ without) if abs(without[3]) < 1e-9 else 1.0
        np.testing.assert_allclose(sign * with_package, without, atol=1e-9)


@needs_tf_transformations
@pytest.mark.parametrize("quaternion", [(0, 0, 0, 0), (0, 0, 0, 3.0), (0, 0, 0, math.nan)])
def test_invalid_quaternions_raise_with_tf_transformations(quaternion):
    with pytest.raises(ValueError, match="quaternion"):
        rotations.pose_from_quaternion((0, 0, 0), quaternion)
    with pytest.raises(ValueError, match="finite"):
        rotations.pose_from_quaternion((math.inf, 0, 0), (0, 0, 0, 1.0))


def cloud(step: int, offsets: dict[str, int], count: int):
    """A cloud of random points with float32 fields at these byte offsets."""
    message = clouds.cloud_message(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8), Header(frame_id="map"))
    raw = RANDOM.integers(0, 256, (count, step), dtype=np.uint8)
    for offset in offsets.values():
        raw[:, offset : offset + 4] = RANDOM.normal(size=(count, 1)).astype("<f4").view(np.uint8)
    message.fields = [
        PointField(name=name, offset=offset, datatype=PointField.FLOAT32, count=1) for name, offset in offsets.items()
    ]
    message.point_step, message.width, message.row_step = step, count, step * count
    message.data = messages.bytes_field(raw)
    return message


@needs_sensor_msgs_py
@pytest.mark.parametrize(
    ("step", "offsets"),
    [
        (16, {"x": 0, "y": 4, "z": 8, "rgb": 12}),
        (32, {"x": 0, "y": 4, "z": 8, "rgb": 16}),
        (19, {"x": 3, "y": 7, "z": 11, "rgba": 15}),
        (24, {"z": 0, "intensity": 4, "x": 8, "y": 20}),
    ],
    ids=["packed", "PCL", "not aligned", "other order"],
)
@pytest.mark.parametrize("count", [0, 1, 100])
def test_cloud_arrays_equal_sensor_msgs_py(monkeypatch, step, offsets, count):
    message = cloud(step, offsets, count)
    points, colours = clouds.cloud_arrays(message)
    monkeypatch.setattr(clouds, "point_cloud2", None)
    expected_points, expected_colours = clouds.cloud_arrays(message)
    assert points.dtype == expected_points.dtype == np.float32
    assert points.shape == expected_points.shape == (count, 3)
    np.testing.assert_array_equal(points, expected_points)
    assert (colours is None) == (expected_colours is None)
    if colours is not None:
        np.testing.assert_array_equal(colours, expected_colours)
