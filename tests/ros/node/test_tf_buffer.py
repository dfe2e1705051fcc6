"""The transform buffer, against transforms made by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.ros.node.tf_buffer import SET_BACK_NS, TransformBuffer, TransformUnavailableError

SECOND = 1_000_000_000


def pose(xyz, rotvec=(0, 0, 0)) -> np.ndarray:
    out = np.eye(4)
    out[:3, :3] = Rotation.from_rotvec(rotvec).as_matrix()
    out[:3, 3] = xyz
    return out


def put(buffer, parent, child, matrix, stamp, **options) -> bool:
    x, y, z, w = Rotation.from_matrix(matrix[:3, :3]).as_quat()
    return buffer.insert(parent, child, tuple(matrix[:3, 3]), (w, x, y, z), stamp, **options)


def test_chain_through_a_common_frame():
    buffer = TransformBuffer()
    map_odom, odom_base = pose((1, 2, 0), (0, 0, 0.4)), pose((3, 0, 0), (0, 0, -1.1))
    base_camera, map_door = pose((0.1, 0, 0.5), (-1.2, 1.2, -1.2)), pose((9, 9, 0), (0, 0, 2.0))
    put(buffer, "map", "odom", map_odom, 5 * SECOND)
    put(buffer, "odom", "base", odom_base, 5 * SECOND)
    put(buffer, "base", "camera", base_camera, 0, static=True)
    put(buffer, "map", "door", map_door, 0, static=True)
    expected = map_odom @ odom_base @ base_camera
    for target, source, matrix in (
        ("map", "camera", expected),
        ("camera", "map", invert_pose(expected)),
        ("door", "camera", invert_pose(map_door) @ expected),
        ("odom", "odom", np.eye(4)),
        ("/map", "/camera", expected),
    ):
        found, stamp = buffer.lookup(target, source, 5 * SECOND)
        np.testing.assert_allclose(found, matrix, atol=1e-12)
        assert stamp == 5 * SECOND


def test_between_two_samples():
    buffer = TransformBuffer()
    put(buffer, "map", "base", pose((0, 0, 0)), 10 * SECOND)
    put(buffer, "map", "base", pose((2, 0, 0), (0, 0, 1.0)), 12 * SECOND)
    found, _ = buffer.lookup("map", "base", 10 * SECOND + SECOND // 2)
    np.testing.assert_allclose(found, pose((0.5, 0, 0), (0, 0, 0.25)), atol=1e-9)


def test_quaternions_of_opposite_sign_turn_the_short_way():
    buffer = TransformBuffer()
    buffer.insert("map", "base", (0, 0, 0), (1, 0, 0, 0), 0)
    x, y, z, w = Rotation.from_rotvec((0, 0, 0.2)).as_quat()
    buffer.insert("map", "base", (0, 0, 0), (-w, -x, -y, -z), 10)
    np.testing.assert_allclose(buffer.lookup("map", "base", 5)[0], pose((0, 0, 0), (0, 0, 0.1)), atol=1e-9)


def test_samples_out_of_order_are_sorted_in():
    buffer = TransformBuffer()
    for stamp in (30, 10, 20):
        put(buffer, "map", "base", pose((stamp, 0, 0)), stamp)
    assert buffer.lookup("map", "base", 15)[0][0, 3] == pytest.approx(15)
    assert buffer.lookup("map", "base", 25)[0][0, 3] == pytest.approx(25)


def test_newest_is_the_newest_that_all_links_have():
    buffer = TransformBuffer()
    for stamp in (1, 2, 3):
        put(buffer, "map", "odom", pose((stamp, 0, 0)), stamp)
        if stamp < 3:
            put(buffer, "odom", "base", pose((0, stamp, 0)), stamp)
    found, stamp = buffer.lookup("map", "base", None)
    assert stamp == 2
    np.testing.assert_allclose(found[:3, 3], (2, 2, 0))


@pytest.mark.parametrize(
    ("target", "source", "stamp", "word", "may_come"),
    [
        ("map", "base", 5 * SECOND, "use_sim_time", True),
        ("map", "base", 1 * SECOND, "older than all", False),
        ("map", "moon", 3 * SECOND, "no frame 'moon'", True),
        ("map", "island", 3 * SECOND, "no connection", True),
    ],
)
def test_what_is_missing_is_said(target, source, stamp, word, may_come):
    buffer = TransformBuffer()
    put(buffer, "map", "base", np.eye(4), 2 * SECOND)
    put(buffer, "map", "base", np.eye(4), 4 * SECOND)
    put(buffer, "sea", "island", np.eye(4), 3 * SECOND)
    with pytest.raises(TransformUnavailableError, match=word) as caught:
        buffer.lookup(target, source, stamp)
    assert caught.value.may_come == may_come


def test_empty_buffer_says_that_nothing_is_published():
    with pytest.raises(TransformUnavailableError, match="no transform at all"):
        TransformBuffer().lookup("map", "base", None)


def test_time_set_back_forgets_the_frame():
    buffer = TransformBuffer()
    put(buffer, "map", "base", pose((1, 0, 0)), 100 * SECOND)
    assert put(buffer, "map", "base", pose((2, 0, 0)), 50 * SECOND)
    assert buffer.lookup("map", "base", None)[0][0, 3] == 2
    assert not put(buffer, "map", "base", pose((3, 0, 0)), 50 * SECOND - SET_BACK_NS // 2)  # only late


def test_forget_after_keeps_what_came_of_the_new_time_and_what_is_static():
    buffer = TransformBuffer()
    put(buffer, "map", "odom", np.eye(4), 100 * SECOND)
    put(buffer, "odom", "base", np.eye(4), 10 * SECOND)
    put(buffer, "base", "camera", np.eye(4), 100 * SECOND, static=True)
    buffer.forget_after(10 * SECOND)
    buffer.lookup("odom", "camera", 10 * SECOND)
    with pytest.raises(TransformUnavailableError, match="no frame 'map'") as caught:
        buffer.lookup("map", "camera", 10 * SECOND)
    assert caught.value.may_come


def test_memory_is_bounded_by_the_time_kept():
    buffer = TransformBuffer(seconds=2.0)
    for stamp in range(0, 100 * SECOND, SECOND // 10):
        put(buffer, "map", "base", np.eye(4), stamp)
    assert len(buffer._stamps["base"]) < 100
    buffer.lookup("map", "base", 98 * SECOND)


def test_transforms_that_are_none_are_left_out():
    buffer = TransformBuffer()
    good = ((0, 0, 0), (1, 0, 0, 0))
    buffer.insert("map", "base", *good, 10)
    for parent, child, translation, quaternion in (
        ("map", "base", (np.nan, 0, 0), (1, 0, 0, 0)),
        ("map", "base", (0, 0, 0), (0, 0, 0, 0)),
        ("map", "base", (0, 0, 0), (2, 0, 0, 0)),
        ("base", "base", *good),
        ("", "base", *good),
        ("map", "", *good),
    ):
        buffer.insert(parent, child, translation, quaternion, 20)
    assert buffer.lookup("map", "base", None)[1] == 10
    assert buffer.frames() == ["base", "map"]


def test_loop_in_the_tree_ends():
    buffer = TransformBuffer()
    for parent, child in (("a", "b"), ("b", "c"), ("c", "a")):
        put(buffer, parent, child, np.eye(4), 10)
    with pytest.raises(TransformUnavailableError):
        buffer.lookup("a", "elsewhere", None)


def test_tf2_is_used_where_it_is_installed_and_says_the_same(monkeypatch):
    """The adapter against a stand-in with tf2_ros's interface; the real one comes with a full ROS only."""
    import sys
    from types import ModuleType

    from geometry_msgs.msg import TransformStamped
    from std_msgs.msg import Header

    from worldstereo_ros.ros.conversions import messages
    from worldstereo_ros.ros.node.tf_buffer import open_transforms

    matrix = pose((1, 2, 3), (0.1, -0.4, 0.2))
    asked = []
    tf2 = ModuleType("tf2_ros")

    class TransformException(Exception):  # noqa: N818
        pass

    class Buffer:
        def __init__(self, cache_time, node) -> None:
            assert cache_time.nanoseconds == 7 * SECOND

        def lookup_transform(self, target, source, time) -> TransformStamped:
            asked.append((target, source, time.nanoseconds))
            if source == "moon":
                raise TransformException("frame does not exist")
            if time.nanoseconds == SECOND:
                raise TransformException("Lookup would require extrapolation into the past.")
            stamp = messages.time_message(time.nanoseconds or 5 * SECOND)
            return messages.transform_message(matrix, Header(frame_id=target, stamp=stamp), source)

        def clear(self) -> None:
            asked.append("cleared")

    class TransformListener:
        def __init__(self, buffer, node) -> None:
            pass

        def unregister(self) -> None:
            asked.append("unregistered")

    tf2.TransformException, tf2.Buffer, tf2.TransformListener = TransformException, Buffer, TransformListener
    monkeypatch.setitem(sys.modules, "tf2_ros", tf2)
    transforms = open_transforms(None, 7.0, lambda: None)
    found, stamp = transforms.lookup("map", "base", 3 * SECOND)
    np.testing.assert_allclose(found, matrix, atol=1e-12)
    assert stamp == 3 * SECOND
    assert transforms.lookup("map", "base", None)[1] == 5 * SECOND  # 0 asks tf2 for the newest
    for source, at, may_come in (("moon", 3 * SECOND, True), ("base", SECOND, False)):
        with pytest.raises(TransformUnavailableError) as caught:
            transforms.lookup("map", source, at)
        assert caught.value.may_come == may_come
    transforms.forget_after(0)
    transforms.close()
    assert asked[-2:] == ["cleared", "unregistered"]
