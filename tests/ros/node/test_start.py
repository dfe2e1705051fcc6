"""Configuration and activation of the node in this process: values and events that prevent it."""

import gc
import threading
import weakref

import numpy as np
import pytest
import rclpy
from helpers.node_harness import environment_of, reserved_domain
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import ImaginedView
from worldstereo_ros.ros.conversions import qos
from worldstereo_ros.ros.node import node as node_module
from worldstereo_ros.ros.node.node import WorldStereoNode
from worldstereo_ros.ros.node.qos_overrides import check_qos_override, unknown_qos_overrides

RELIABILITY = "qos_overrides./image.subscription.reliability"


@pytest.fixture
def make_node(monkeypatch):
    nodes = []
    with reserved_domain() as domain:
        for name, value in environment_of(domain).items():
            monkeypatch.setenv(name, value)
        context = rclpy.Context()
        rclpy.init(context=context, domain_id=domain)

        def make(stop_requested=lambda: False, **overrides):
            parameters = [Parameter(name, value=value) for name, value in {"model": "geometric", **overrides}.items()]
            node = WorldStereoNode(stop_requested=stop_requested, context=context, parameter_overrides=parameters)
            nodes.append(node)
            return node

        yield make
        for node in nodes:
            node.close()
            node.destroy_node()
        context.try_shutdown()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (RELIABILITY, "best-effort", "Did you mean best_effort?"),
        (RELIABILITY, 1, "one of system_default, reliable, best_effort"),
        ("qos_overrides./map.publisher.history", "last", "keep_last, keep_all"),
        ("qos_overrides./image.subscription.depth", 0, "between 1 and"),
        ("qos_overrides./image.subscription.depth", "ten", "an integer"),
    ],
)
def test_unusable_qos_override_is_said(make_node, name, value, message):
    node = make_node(**{name: value})
    assert node.trigger_configure() == TransitionCallbackReturn.FAILURE
    assert name in node.diagnostics.problem
    assert message in node.diagnostics.problem
    assert node.state_label == "unconfigured"


def test_qos_override_changes_one_topic_only(make_node):
    node = make_node(**{RELIABILITY: "reliable", "qos_overrides./worldstereo/image.publisher.depth": 3})
    node.start()
    assert node.state_label == "active"
    reliable = {name: node.get_subscriptions_info_by_topic(f"/{name}") for name in ("image", "depth")}
    assert [info.qos_profile.reliability.name for info in reliable["image"]] == ["RELIABLE"]
    assert [info.qos_profile.reliability.name for info in reliable["depth"]] == ["BEST_EFFORT"]
    assert (qos.SENSOR.reliability.name, qos.VIEW.depth) == ("BEST_EFFORT", 10)


def test_qos_overrides_without_effect_are_said():
    topics = [("/image", "subscription"), ("/depth", "subscription")]
    overrides = {"model": 1, RELIABILITY: "reliable", RELIABILITY + "x": 1, "qos_overrides./imag.subscription.depth": 1}
    warnings = unknown_qos_overrides(overrides, topics)
    assert len(warnings) == 2
    assert RELIABILITY in warnings[0]
    assert "qos_overrides./image.subscription.depth" in warnings[1]
    assert check_qos_override(RELIABILITY, "Best_Effort") == ""


def test_failed_activation_is_said(make_node, monkeypatch):
    """rclpy goes back to unconfigured without a word if on_activate raises."""
    node = make_node()
    assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
    with monkeypatch.context() as patch:
        patch.setattr(node_module, "Subscriptions", lambda *arguments, **options: 1 / 0)
        assert node.trigger_activate() == TransitionCallbackReturn.FAILURE
    assert node.diagnostics.problem == "Not activated. ZeroDivisionError: division by zero"
    assert node.state_label == "inactive"
    assert node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    assert not node.diagnostics.problem


def test_request_to_end_interrupts_the_configuration(make_node, monkeypatch):
    stop, loading, loaded = threading.Event(), threading.Event(), threading.Event()

    def load_for_ever(parameters):
        loading.set()
        stop.set()
        loaded.wait(200)

    monkeypatch.setattr(node_module, "build_world", load_for_ever)
    node = make_node(stop.is_set)
    assert node.trigger_configure() == TransitionCallbackReturn.FAILURE
    assert loading.is_set()
    assert not loaded.is_set()  # so it did not wait
    assert "asked to end" in node.diagnostics.problem
    assert node.close()
    loaded.set()


def test_second_node_of_the_same_name_is_said(make_node):
    first, second = make_node(), make_node()
    for node in (first, second):
        node._surroundings.check_namesakes()
        assert node.diagnostics.notice.startswith("2 nodes are named /worldstereo")


def test_published_views_are_not_kept(make_node):
    """~/views draws hundreds of them, for which their cameras and poses are enough."""
    node = make_node()
    node.start()
    image = np.zeros((30, 40, 3), np.uint8)
    view = ImaginedView(image, Camera.from_fov(40, 30, 1.0), np.eye(4), np.ones((30, 40), np.float32))
    node.worker_events.publishers.publish_view(view)
    kept = weakref.ref(image)
    del view, image
    gc.collect()
    assert kept() is None
