"""The camera's place on the robot, as the client finds it in TF; no process runs."""

import numpy as np
import pytest

from worldstereo_ros.geometry.camera_axes import BODY_FROM_OPTICAL
from worldstereo_ros.ros.client import extrinsics
from worldstereo_ros.ros.client.extrinsics import Extrinsics
from worldstereo_ros.ros.node.parameters import make_parameters
from worldstereo_ros.ros.node.pose_resolver import PoseResolver
from worldstereo_ros.ros.node.tf_buffer import TransformBuffer
from worldstereo_ros.utils.errors import InputError

IDENTITY = (1.0, 0.0, 0.0, 0.0)
OPTICAL = (0.5, -0.5, 0.5, -0.5)


@pytest.mark.parametrize("axes", ["auto", "optical", "body"])
@pytest.mark.parametrize(("frame", "rotation"), [("camera_link", IDENTITY), ("camera_optical_frame", OPTICAL)])
def test_camera_is_where_the_node_has_it(monkeypatch, axes, frame, rotation):
    """Gazebo stamps images with a frame of body axes: both ends must take it for the same."""
    buffer = TransformBuffer()
    buffer.insert("base_link", frame, (0.1, 0.0, 0.3), rotation, 0, static=True)
    monkeypatch.setattr(extrinsics, "open_transforms", lambda *_: buffer)
    found = Extrinsics(None).base_from_camera("base_link", lambda: frame, None, camera_axes=axes)
    node = PoseResolver(buffer, make_parameters({"camera_axes": axes}))
    np.testing.assert_allclose(found, node.base_from_camera(frame), atol=1e-12)
    if axes == "auto":  # ahead of the robot, not up
        np.testing.assert_allclose(found[:3, :3], BODY_FROM_OPTICAL[:3, :3], atol=1e-12)
    np.testing.assert_array_equal(found[:3, 3], [0.1, 0, 0.3])


def test_parameter_of_the_node_where_tf_has_none(monkeypatch):
    monkeypatch.setattr(extrinsics, "open_transforms", lambda *_: TransformBuffer())
    monkeypatch.setattr(extrinsics, "TF_TIMEOUT_S", 0.0)
    fallback = np.eye(4)
    assert Extrinsics(None).base_from_camera("base_link", lambda: "camera", fallback) is fallback
    with pytest.raises(InputError, match="base_from_camera"):
        Extrinsics(None).base_from_camera("base_link", lambda: "camera", None)
