"""The client of the node: observations that are remembered, rejected or lost."""

import dataclasses

import numpy as np
import pytest
from helpers.node_harness import CAMERA, running, scene, wait_for
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
    with running() as (_, robot), WorldStereoClient("/worldstereo") as client:
        client.wait_until_ready()
        # Without pauses: none may replace another one in the mailbox.
        stamps = [client.add_observation(view(0.1 * index)) for index in range(6)]
        assert stamps == sorted(set(stamps))
        assert wait_for(lambda: robot.diagnostics().get("views in the bank") == "6")


def test_add_observation_raises_for_rejected_view():
    with running() as (_, robot), WorldStereoClient("/worldstereo") as client:
        client.wait_until_ready()
        no_depth = dataclasses.replace(view(0), depth=np.zeros_like(view(0).depth))
        with pytest.raises(NodeTimeoutError, match=r"published 2 times, 0\.4 s apart"):
            client.add_observation(no_depth, timeout=0.4, attempts=2)
        assert wait_for(lambda: robot.diagnostics().get("image rejected") == "2")
        client.add_observation(view(0))


def test_late_client_receives_last_remembered_stamp():
    """The topic is latched: a client that connects later receives the last stamp."""
    with running() as (_, robot):
        robot.publish_view()
        with WorldStereoClient("/worldstereo") as client:
            assert wait_for(lambda: client.last_remembered_ns > 0)


def test_only_measured_depth_is_published():
    """The node takes all depth that it gets as measured, so none that was estimated may reach it."""
    half = np.zeros((CAMERA.height, CAMERA.width), bool)
    half[:, : CAMERA.width // 2] = True
    with running() as (_, robot), WorldStereoClient("/worldstereo") as client:
        client.wait_until_ready()
        depths = robot.subscribe("/depth", Image, qos.VIEW)
        assert wait_for(lambda: client._depth.get_subscription_count() == 2)
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
