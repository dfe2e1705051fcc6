"""The client of the node: observations that are remembered, rejected or lost."""

import dataclasses

import numpy as np
import pytest
from helpers.node_harness import CAMERA, running, scene, wait_for

from worldstereo_ros.geometry.views import View
from worldstereo_ros.ros.client.client import NodeTimeoutError, WorldStereoClient

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
