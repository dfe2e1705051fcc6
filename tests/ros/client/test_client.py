"""A robot's side of the node: what it shows is remembered, or it hears that it was not."""

import dataclasses

import numpy as np
import pytest
from helpers.node_harness import CAMERA, running, scene, wait_for

from worldstereo_ros.geometry.views import View
from worldstereo_ros.ros.client.client import NodeSilentError, WorldStereoClient

pytestmark = pytest.mark.ros


def view(x: float, seed: int = 0) -> View:
    image, depth = scene(seed)
    pose = np.eye(4)
    pose[0, 3] = x
    return View(image, CAMERA, pose, depth)


def test_what_was_shown_is_remembered_when_show_comes_back():
    with running() as (_, robot), WorldStereoClient("/worldstereo") as client:
        client.wait_until_ready()
        stamps = [
            client.add_observation(view(0.1 * index)) for index in range(6)
        ]  # as fast as it goes: none takes another's place
        assert stamps == sorted(set(stamps))
        assert wait_for(lambda: robot.diagnostics().get("views in the bank") == "6")


def test_a_view_that_is_refused_is_not_waited_for_without_end():
    with running() as (_, robot), WorldStereoClient("/worldstereo") as client:
        client.wait_until_ready()
        blind = dataclasses.replace(view(0), depth=np.zeros_like(view(0).depth))
        with pytest.raises(NodeSilentError, match=r"shown 2 times, 0\.4 s apart"):
            client.add_observation(blind, timeout=0.4, attempts=2)
        assert wait_for(lambda: robot.diagnostics().get("image refused") == "2")
        client.add_observation(view(0))


def test_whoever_comes_late_hears_what_was_remembered_last():
    """The topic is latched: a client that connects after the image came still learns of it."""
    with running() as (_, robot):
        robot.publish_view()
        with WorldStereoClient("/worldstereo") as client:
            assert wait_for(lambda: client._last_remembered_ns > 0)
