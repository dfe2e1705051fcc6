"""The transform buffer against transforms composed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.ros.node import tf_buffer
from worldstereo_ros.ros.node.tf_buffer import TIME_JUMP_NS, Insertion, TransformBuffer, TransformUnavailableError

SECOND = 1_000_000_000


def pose(xyz, rotvec=(0, 0, 0)) -> np.ndarray:
    out = np.eye(4)
    out[:3, :3] = Rotation.from_rotvec(rotvec).as_matrix()
    out[:3, 3] = xyz
    return out


def insert(buffer, parent, child, matrix, stamp, **options) -> Insertion:
    x, y, z, w = Rotation.from_matrix(matrix[:3, :3]).as_quat()
    return buffer.insert(parent, child, tuple(matrix[:3, 3]), (w, x, y, z), stamp, **options)


def test_lookup_through_common_frame():
    buffer = TransformBuffer()
    map_odom, odom_base = pose((1, 2, 0), (0, 0, 0.4)), pose((3, 0, 0), (0, 0, -1.1))
    base_camera, map_door = pose((0.1, 0, 0.5), (-1.2, 1.2, -1.2)), pose((9, 9, 0), (0, 0, 2.0))
    insert(buffer, "map", "odom", map_odom, 5 * SECOND)
    insert(buffer, "odom", "base", odom_base, 5 * SECOND)
    insert(buffer, "base", "camera", base_camera, 0, static=True)
    insert(buffer, "map", "door", map_door, 0, static=True)
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


def test_lookup_interpolates_between_samples():
    buffer = TransformBuffer()
    insert(buffer, "map", "base", pose((0, 0, 0)), 10 * SECOND)
    insert(buffer, "map", "base", pose((2, 0, 0), (0, 0, 1.0)), 12 * SECOND)
    found, _ = buffer.lookup("map", "base", 10 * SECOND + SECOND // 2)
    np.testing.assert_allclose(found, pose((0.5, 0, 0), (0, 0, 0.25)), atol=1e-9)


def test_lookup_interpolates_along_shortest_rotation():
    buffer = TransformBuffer()
    buffer.insert("map", "base", (0, 0, 0), (1, 0, 0, 0), 0)
    x, y, z, w = Rotation.from_rotvec((0, 0, 0.2)).as_quat()
    buffer.insert("map", "base", (0, 0, 0), (-w, -x, -y, -z), 10)
    np.testing.assert_allclose(buffer.lookup("map", "base", 5)[0], pose((0, 0, 0), (0, 0, 0.1)), atol=1e-9)


def test_samples_are_sorted_by_stamp():
    buffer = TransformBuffer()
    for stamp in (30, 10, 20):
        insert(buffer, "map", "base", pose((stamp, 0, 0)), stamp)
    assert buffer.lookup("map", "base", 15)[0][0, 3] == pytest.approx(15)
    assert buffer.lookup("map", "base", 25)[0][0, 3] == pytest.approx(25)


def test_newest_lookup_uses_stamp_common_to_all_links():
    buffer = TransformBuffer()
    for stamp in (1, 2, 3):
        insert(buffer, "map", "odom", pose((stamp, 0, 0)), stamp)
        if stamp < 3:
            insert(buffer, "odom", "base", pose((0, stamp, 0)), stamp)
    found, stamp = buffer.lookup("map", "base", None)
    assert stamp == 2
    np.testing.assert_allclose(found[:3, 3], (2, 2, 0))


@pytest.mark.parametrize(
    ("target", "source", "stamp", "word", "may_arrive"),
    [
        ("map", "base", 5 * SECOND, "use_sim_time", True),
        ("map", "base", 1 * SECOND, "older than all", False),
        ("map", "moon", 3 * SECOND, "no frame 'moon'", True),
        ("map", "island", 3 * SECOND, "no connection", True),
    ],
)
def test_unavailable_transform_raises_with_reason(target, source, stamp, word, may_arrive):
    buffer = TransformBuffer()
    insert(buffer, "map", "base", np.eye(4), 2 * SECOND)
    insert(buffer, "map", "base", np.eye(4), 4 * SECOND)
    insert(buffer, "sea", "island", np.eye(4), 3 * SECOND)
    with pytest.raises(TransformUnavailableError, match=word) as caught:
        buffer.lookup(target, source, stamp)
    assert caught.value.may_arrive == may_arrive


def test_empty_buffer_raises_with_reason():
    with pytest.raises(TransformUnavailableError, match="No transform received"):
        TransformBuffer().lookup("map", "base", None)


def test_backward_jump_removes_samples_of_frame():
    buffer = TransformBuffer()
    insert(buffer, "map", "base", pose((1, 0, 0)), 100 * SECOND)
    assert insert(buffer, "map", "base", pose((2, 0, 0)), 50 * SECOND).jumped_back
    assert buffer.lookup("map", "base", None)[0][0, 3] == 2
    late = insert(buffer, "map", "base", pose((3, 0, 0)), 50 * SECOND - TIME_JUMP_NS // 2)
    assert not late.jumped_back


def test_discard_after_keeps_earlier_and_static_transforms():
    buffer = TransformBuffer()
    insert(buffer, "map", "odom", np.eye(4), 100 * SECOND)
    insert(buffer, "odom", "base", np.eye(4), 10 * SECOND)
    insert(buffer, "base", "camera", np.eye(4), 100 * SECOND, static=True)
    buffer.discard_after(10 * SECOND)
    buffer.lookup("odom", "camera", 10 * SECOND)
    with pytest.raises(TransformUnavailableError, match="no frame 'map'") as caught:
        buffer.lookup("map", "camera", 10 * SECOND)
    assert caught.value.may_arrive


def test_old_samples_are_removed():
    buffer = TransformBuffer(cache_time=2.0)
    for stamp in range(0, 100 * SECOND, SECOND // 10):
        insert(buffer, "map", "base", np.eye(4), stamp)
    assert buffer.sample_count("base") < 100
    buffer.lookup("map", "base", 98 * SECOND)


def test_invalid_transforms_are_ignored():
    buffer = TransformBuffer()
    identity = ((0, 0, 0), (1, 0, 0, 0))
    buffer.insert("map", "base", *identity, 10)
    for parent, child, translation, quaternion, reason in (
        ("map", "base", (np.nan, 0, 0), (1, 0, 0, 0), "not finite"),
        ("map", "base", (0, 0, 0), (0, 0, 0, 0), "norm 0;"),
        ("map", "base", (0, 0, 0), (2, 0, 0, 0), "norm 2;"),
        ("base", "base", *identity, "own parent"),
        ("", "base", *identity, "empty"),
        ("map", "", *identity, "empty"),
        ("map", "x" * 1000, *identity, "256 characters"),
    ):
        assert reason in buffer.insert(parent, child, translation, quaternion, 20).refused
    assert buffer.lookup("map", "base", None)[1] == 10
    assert buffer.frames() == ["base", "map"]


def test_cyclic_tree_raises():
    buffer = TransformBuffer()
    for parent, child in (("a", "b"), ("b", "c"), ("c", "a")):
        insert(buffer, parent, child, np.eye(4), 10)
    with pytest.raises(TransformUnavailableError):
        buffer.lookup("a", "elsewhere", None)


def test_frame_that_gets_another_parent_keeps_the_old_one_for_the_past():
    """As tf2 does: each sample is in the parent that it was sent with."""
    buffer = TransformBuffer()
    insert(buffer, "map", "odom", pose((100, 0, 0)), 0, static=True)
    insert(buffer, "odom", "base", pose((1, 0, 0)), 1 * SECOND)
    insert(buffer, "odom", "base", pose((2, 0, 0)), 2 * SECOND)
    assert insert(buffer, "map", "base", pose((102.5, 0, 0)), 3 * SECOND).old_parent == "odom"
    insert(buffer, "map", "base", pose((103.5, 0, 0)), 4 * SECOND)
    # Between the parents the earlier sample is taken as it is, in its parent.
    for seconds, x in ((1, 101), (1.5, 101.5), (2, 102), (2.9, 102), (3, 102.5), (3.5, 103)):
        assert buffer.lookup("map", "base", int(seconds * SECOND))[0][0, 3] == pytest.approx(x), seconds
    assert buffer.lookup("map", "base", None)[0][0, 3] == pytest.approx(103.5)
    assert buffer.lookup("odom", "base", int(3.5 * SECOND))[0][0, 3] == pytest.approx(3)


def test_frame_that_leaves_the_tree_is_found_in_the_past_only():
    buffer = TransformBuffer()
    insert(buffer, "map", "base", pose((1, 0, 0)), 1 * SECOND)
    insert(buffer, "map", "base", pose((2, 0, 0)), 2 * SECOND)
    insert(buffer, "lift", "base", pose((0, 0, 0)), 3 * SECOND)
    assert buffer.lookup("map", "base", 2 * SECOND)[0][0, 3] == 2
    for stamp in (3 * SECOND, None):
        with pytest.raises(TransformUnavailableError, match=r"no frame 'map'.*base, lift"):
            buffer.lookup("map", "base", stamp)


def test_late_sample_in_another_parent_changes_the_past_only():
    buffer = TransformBuffer()
    insert(buffer, "map", "base", pose((3, 0, 0)), 3 * SECOND)
    assert insert(buffer, "odom", "base", pose((7, 0, 0)), 2 * SECOND) == Insertion()
    assert buffer.lookup("map", "base", None)[0][0, 3] == 3
    assert buffer.lookup("odom", "base", 2 * SECOND)[0][0, 3] == 7


def test_full_buffer_refuses_new_frames_but_keeps_those_in_use(monkeypatch):
    monkeypatch.setattr(tf_buffer, "MAX_FRAMES", 20)
    buffer = TransformBuffer(cache_time=1.0)
    insert(buffer, "map", "base", np.eye(4), 1 * SECOND)
    insert(buffer, "base", "camera", np.eye(4), 0, static=True)
    buffer.lookup("map", "camera", None)
    for index in range(18):
        assert not insert(buffer, "map", f"object_{index}", np.eye(4), 1 * SECOND).refused
    assert "20 frames are known" in insert(buffer, "map", "one_more", np.eye(4), 1 * SECOND).refused
    # Known frames still move, also those that were silent for longer than samples are kept.
    assert not insert(buffer, "map", "object_0", pose((5, 0, 0)), 9 * SECOND).refused
    assert any(not insert(buffer, "map", "one_more", np.eye(4), 9 * SECOND).refused for _ in range(2000))
    assert set(buffer.frames()) == {"map", "base", "camera", "object_0", "one_more"}
    assert buffer.lookup("map", "camera", None)[1] == 1 * SECOND


def test_number_of_samples_is_bounded_and_the_newest_stay(monkeypatch):
    monkeypatch.setattr(tf_buffer, "MAX_SAMPLES", 1000)
    buffer = TransformBuffer(cache_time=600.0)
    insert(buffer, "map", "slow", pose((4, 0, 0)), 0)
    for index in range(3000):
        for name in ("a", "b"):
            insert(buffer, "map", name, pose((index, 0, 0)), index * SECOND // 100)
        assert sum(buffer.sample_count(name) for name in ("a", "b", "slow")) <= 1000
    assert buffer.lookup("map", "a", None)[0][0, 3] == 2999
    assert buffer.sample_count("a") >= 250
    assert buffer.lookup("map", "slow", None)[0][0, 3] == 4


def test_listener_says_what_it_ignores_and_keeps_the_rest():
    from types import SimpleNamespace

    from std_msgs.msg import Header
    from tf2_msgs.msg import TFMessage

    from worldstereo_ros.ros.conversions import messages
    from worldstereo_ros.ros.node.tf_listener import open_transforms

    warnings: list[tuple[str, str]] = []
    node = SimpleNamespace(create_subscription=lambda *arguments: None)
    transforms = open_transforms(node, 10.0, lambda: None, lambda *said: warnings.append(said))

    def message(parent: str, child: str, w: float = 1.0, second: int = 1):
        stamp = messages.time_message(second * SECOND)
        item = messages.transform_message(np.eye(4), Header(frame_id=parent, stamp=stamp), child)
        item.transform.rotation.w = w
        return item

    transforms.on_tf(
        TFMessage(
            transforms=[message("base", "wheel", float("nan")), message("map", "base"), message("base", "arm", 0.0)]
        ),
        static=False,
    )
    assert transforms.frames() == ["base", "map"]
    assert transforms.ignored == 2
    assert "base <- wheel. A number is not finite." in warnings[0][0]
    assert "(2 ignored so far.)" in warnings[1][0]
    transforms.on_tf(TFMessage(transforms=[message("odom", "base", second=2)]), static=False)
    assert "'base' was in 'map' and is now in 'odom'" in warnings[2][0]


def test_tf2_ros_is_used_if_installed(monkeypatch):
    """The adapter against a stub with the interface of tf2_ros, which only a full ROS has."""
    import sys
    from types import ModuleType

    from geometry_msgs.msg import TransformStamped
    from std_msgs.msg import Header

    from worldstereo_ros.ros.conversions import messages
    from worldstereo_ros.ros.node.tf_listener import open_transforms

    matrix = pose((1, 2, 3), (0.1, -0.4, 0.2))
    calls = []
    tf2 = ModuleType("tf2_ros")

    class TransformException(Exception):  # noqa: N818
        pass

    class Buffer:
        def __init__(self, cache_time, node) -> None:
            assert cache_time.nanoseconds == 7 * SECOND

        def lookup_transform(self, target, source, time) -> TransformStamped:
            calls.append((target, source, time.nanoseconds))
            if source == "moon":
                raise TransformException("frame does not exist")
            if time.nanoseconds == SECOND:
                raise TransformException("Lookup would require extrapolation into the past.")
            stamp = messages.time_message(time.nanoseconds or 5 * SECOND)
            return messages.transform_message(matrix, Header(frame_id=target, stamp=stamp), source)

        def clear(self) -> None:
            calls.append("cleared")

    class TransformListener:
        def __init__(self, buffer, node) -> None:
            pass

        def unregister(self) -> None:
            calls.append("unregistered")

    tf2.TransformException, tf2.Buffer, tf2.TransformListener = TransformException, Buffer, TransformListener
    monkeypatch.setitem(sys.modules, "tf2_ros", tf2)
    transforms = open_transforms(None, 7.0, lambda: None)
    found, stamp = transforms.lookup("map", "base", 3 * SECOND)
    np.testing.assert_allclose(found, matrix, atol=1e-12)
    assert stamp == 3 * SECOND
    assert transforms.lookup("map", "base", None)[1] == 5 * SECOND  # tf2 takes stamp 0 as the newest
    for source, at, may_arrive in (("moon", 3 * SECOND, True), ("base", SECOND, False)):
        with pytest.raises(TransformUnavailableError) as caught:
            transforms.lookup("map", source, at)
        assert caught.value.may_arrive == may_arrive
    transforms.discard_after(0)
    transforms.close()
    assert calls[-2:] == ["cleared", "unregistered"]
