"""The client of the node: observations that are remembered, rejected or lost."""

import dataclasses

import numpy as np
import pytest
from helpers.node_harness import CAMERA, camera_at, running, scene, wait_for
from sensor_msgs.msg import Image

from worldstereo_ros.geometry.views import View
from worldstereo_ros.ros.client.client import NodeTimeoutError, WorldStereoClient
from worldstereo_ros.ros.conversions import qos
from worldstereo_ros.ros.conversions.messages import depth_array
from worldstereo_ros.utils.errors import InputError

pytestmark = pytest.mark.ros


def view(x: float, seed: int = 0) -> View:
    image, depth = scene(seed)
    pose = np.eye(4)
    pose[0, 3] = x
    return View(image, CAMERA, pose, depth)


def test_add_observation_returns_when_remembered():
    with running() as (_, robot), WorldStereoClient(publish_tf=True) as client:
        client.wait_until_ready()
        # Without pauses: none may replace another one in the mailbox.
        stamps = [client.add_observation(view(0.1 * index)) for index in range(6)]
        assert stamps == sorted(set(stamps))
        assert wait_for(lambda: robot.diagnostics().get("views in the bank") == "6")


def test_add_observation_raises_for_rejected_view():
    with running() as (_, robot), WorldStereoClient(publish_tf=True) as client:
        client.wait_until_ready()
        no_depth = dataclasses.replace(view(0), depth=np.zeros_like(view(0).depth))
        with pytest.raises(NodeTimeoutError, match=r"published 2 times, each waited for 0\.4 s"):
            client.add_observation(no_depth, timeout=0.4, attempts=2)
        assert wait_for(lambda: robot.diagnostics().get("image rejected") == "2")
        client.add_observation(view(0))
        with pytest.raises(NodeTimeoutError, match=r"rejected an image: The depth image has no valid pixel"):
            client.add_observation(no_depth, timeout=0.4, attempts=1)


def test_client_of_a_robot_publishes_no_transform():
    """Its base has poses of its own: the client asks for views of camera poses with the extrinsics that TF has."""
    with running() as (_, robot), WorldStereoClient() as client:
        robot.publish_view()
        client.wait_until_ready()
        names = [
            info.node_name for topic in ("/tf", "/tf_static") for info in robot.node.get_publishers_info_by_topic(topic)
        ]
        assert "robot" in names
        assert client.node.get_name() not in names
        path = np.stack([camera_at(0.1), camera_at(0.2)])
        result = client.imagine(path)
        assert (result.error_code, result.error_msg, result.views_lost) == (0, "", 0)
        np.testing.assert_allclose([view.world_from_camera for view in result.views], path, atol=1e-6)
        for bad, why in ((np.nan * path, "not finite in pose 0"), (2 * path, "not a rotation"), (path[0], "shape")):
            with pytest.raises(InputError, match=why):
                client.imagine(bad)
        with pytest.raises(InputError, match="publish_tf=True"):
            client.add_observation(view(0))


def test_observations_without_any_transform():
    """A node that takes poses from its topic, of the camera, needs no TF at all."""
    with running({"pose_source": "topic", "path_pose_frame": "camera"}) as (_, robot), WorldStereoClient() as client:
        client.wait_until_ready()
        client.add_observation(view(0.3))
        path = np.stack([view(0.3).world_from_camera, view(0.4).world_from_camera])
        result = client.imagine(path)
        assert result.error_code == 0
        np.testing.assert_allclose([view.world_from_camera for view in result.views], path, atol=1e-6)
        assert result.views[0].observed_fraction > 0.9
        assert not [info for info in robot.node.get_publishers_info_by_topic("/tf") if "client" in info.node_name]


def test_late_client_receives_last_remembered_stamp():
    """The topic is latched: a client that connects later receives the last stamp."""
    with running() as (_, robot):
        robot.publish_view()
        with WorldStereoClient(publish_tf=True) as client:
            assert wait_for(lambda: client.last_remembered_ns > 0)


def test_only_measured_depth_is_published():
    """The node takes all depth that it gets as measured, so none that was estimated may reach it."""
    half = np.zeros((CAMERA.height, CAMERA.width), bool)
    half[:, : CAMERA.width // 2] = True
    with running() as (_, robot), WorldStereoClient(publish_tf=True) as client:
        client.wait_until_ready()
        depths = robot.subscribe("/depth", Image, qos.VIEW)
        publisher = next(publisher for publisher in client._sender.publishers if publisher.topic_name == "/depth")
        assert wait_for(lambda: publisher.get_subscription_count() == 2)
        client.add_observation(dataclasses.replace(view(0), estimated=np.ones_like(half)))
        assert wait_for(lambda: robot.diagnostics().get("depth of the newest observation") == "estimated")
        assert robot.diagnostics()["observed points"] == "0"
        client.add_observation(dataclasses.replace(view(0), estimated=half))
        assert wait_for(lambda: depths)
        assert len(depths) == 1
        published = depth_array(depths[0])
        assert not published[half].any()
        np.testing.assert_array_equal(published[~half], view(0).depth[~half])
        with pytest.raises(InputError, match="imagined"):
            client.publish_view(dataclasses.replace(view(0), observed=half))
