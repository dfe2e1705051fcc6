"""The client's bookkeeping of what arrives from several goals and observations at once; no process runs."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from helpers.node_harness import CAMERA
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from worldstereo_ros.msg import ImaginedView as ImaginedViewMessage

from worldstereo_ros.geometry.views import ImaginedView
from worldstereo_ros.ros.client import remembered, results
from worldstereo_ros.ros.client.remembered import RememberedStamps
from worldstereo_ros.ros.client.results import ViewCollector
from worldstereo_ros.ros.conversions.messages import colour_message, view_message


def imagined(index: int, count: int, second: int, x: float) -> tuple[ImaginedViewMessage, Image]:
    """The messages (view, conditioning) of a view at x, published at a second."""
    pose = np.eye(4)
    pose[0, 3] = x
    image = np.zeros((CAMERA.height, CAMERA.width, 3), np.uint8)
    depth = np.ones((CAMERA.height, CAMERA.width), np.float32)
    view = ImaginedView(image, CAMERA, pose, depth, depth > 0, index=index, count=count)
    header = Header(stamp=Time(sec=second), frame_id="imagined_camera")
    return view_message(view, header, "map"), colour_message(image, header)


class Node:
    """Has the callbacks of the collector's subscriptions."""

    def __init__(self):
        self.callbacks = {}

    def create_subscription(self, kind, topic, callback, profile):
        self.callbacks[topic] = callback

    def publish(self, *view):
        message, conditioning = imagined(*view)
        self.callbacks["/node/conditioning"](conditioning)
        self.callbacks["/node/view"](message)


@pytest.fixture
def node():
    return Node()


@pytest.mark.parametrize(
    ("published", "done", "accepted_s"),
    [
        ([(0, 2, 10, 1), (1, 2, 11, 2)], 2, 10),  # none but its own
        ([(1, 2, 8, 9), (0, 2, 10, 1), (1, 2, 11, 2)], 2, 9),  # the rest of the goal before it
        ([(0, 2, 8, 9), (1, 2, 9, 9), (0, 2, 10, 1), (1, 2, 11, 2)], 2, 10),  # all of it
        ([(0, 3, 10, 9), (0, 2, 10, 1), (1, 2, 11, 2)], 2, 10),  # a view of it, after the acceptance
        ([(0, 2, 10, 9), (0, 2, 11, 1), (1, 2, 12, 2)], 2, 10),  # ... of as many
        ([(0, 2, 10, 9), (0, 2, 13, 1), (0, 2, 14, 9)], 1, 11),  # ... and another one after it
        ([(0, 2, 10, 1), (0, 2, 11, 9), (1, 2, 12, 9)], 1, 10),  # superseded by another one
        ([(0, 2, 10, 1), (1, 2, 11, 2)], 2, 99),  # the clock of a simulation jumped back
        ([(0, 2, 10, 1), (1, 2, 11, 2)], 2, 0),  # it is not known when it was accepted
        ([(1, 2, 11, 2)], 1, 10),  # ... and the first view got lost
    ],
)
def test_views_of_other_goals_are_left_out(monkeypatch, node, published, done, accepted_s):
    monkeypatch.setattr(results, "LAST_VIEWS_TIMEOUT_S", 0.05)
    first_s = next((second for _, _, second, x in published if x == 1), accepted_s)
    collector = ViewCollector(node, "/node")
    with collector.collecting() as collection:
        for view in published:
            node.publish(*view)
        views, arrivals = collection.collect(
            done, 2, accepted_ns=accepted_s * 10**9, seconds_to_first=first_s - accepted_s, since=time.monotonic()
        )
    expected = [x for index, count, _, x in published if count == 2 and x == index + 1 and index < done]
    assert [view.world_from_camera[0, 3] for view in views] == expected
    assert all(view.conditioning is not None for view in views)
    assert len(arrivals) == len(views)


def test_goals_of_several_threads_have_collections_of_their_own(node):
    collector = ViewCollector(node, "/node")
    with collector.collecting() as outer:
        with collector.collecting() as inner:
            node.publish(0, 1, 10, 1)
        node.publish(0, 2, 11, 2)
        node.publish(1, 2, 12, 3)
        assert len(inner.collect(1, 1, accepted_ns=0, seconds_to_first=0.0, since=0.0)[0]) == 1
        assert len(outer.collect(2, 2, accepted_ns=0, seconds_to_first=0.0, since=0.0)[0]) == 2
    node.publish(0, 1, 13, 1)
    assert len(outer.collect(2, 2, accepted_ns=0, seconds_to_first=0.0, since=0.0)[0]) == 2


def test_goal_without_views_waits_for_none(node):
    with ViewCollector(node, "/node").collecting() as collection:
        node.publish(0, 5, 10, 1)
        assert collection.collect(0, 5, accepted_ns=0, seconds_to_first=0.0, since=0.0) == ([], [])


def test_observation_that_another_one_replaced_is_not_remembered(monkeypatch):
    monkeypatch.setattr(remembered, "REPLACED_S", 0.01)
    stamps = RememberedStamps()
    assert not stamps.wait_for(5, 0.01)
    stamps.add(7)
    assert not stamps.wait_for(5, 60)
    assert not stamps.wait_for(8, 0.01)
    threading.Timer(0.05, stamps.add, (8,)).start()
    assert stamps.wait_for(8, 60)
    stamps.add(6)  # of a camera whose images come late
    assert stamps.newest_ns == 8
    assert stamps.wait_for(6, 60)


def test_collector_has_nothing_left_over():
    collector = ViewCollector(SimpleNamespace(create_subscription=lambda *_: None), "/node")
    with pytest.raises(ZeroDivisionError), collector.collecting():
        raise ZeroDivisionError
    assert not collector._collections
