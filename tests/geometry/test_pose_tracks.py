"""Transform trees over time: chained lookups, interpolation, and errors of unavailable transforms."""

import numpy as np
import pytest
from helpers.recordings import BASE_FROM_CAMERA, SECOND

from worldstereo_ros.geometry.pose_tracks import TransformTree, UnknownPoseError
from worldstereo_ros.geometry.trajectories import trajectory
from worldstereo_ros.utils.errors import InputError


def tree_of_transforms() -> TransformTree:
    tree = TransformTree()
    tree.add("map", "odom", 0, trajectory("right", np.eye(4), 2)[1], static=True)
    for i, pose in enumerate(trajectory("turn", np.eye(4), 3, angle=1.0)):
        tree.add("odom", "/base", i * SECOND, pose, static=False)
    tree.add("base", "camera", 0, BASE_FROM_CAMERA, static=True)
    tree.add("base", "lidar", 0, trajectory("up", np.eye(4), 2)[1], static=True)
    return tree


def test_lookup_chains_transforms_up_and_down_the_tree():
    tree, turned = tree_of_transforms(), trajectory("turn", np.eye(4), 9, angle=1.0)
    right, up = (trajectory(name, np.eye(4), 2)[1] for name in ("right", "up"))
    for i in range(9):
        at = i * SECOND // 4
        np.testing.assert_allclose(tree.lookup("map", "camera", at, 0), right @ turned[i] @ BASE_FROM_CAMERA, atol=1e-9)
    np.testing.assert_allclose(tree.lookup("camera", "lidar", 0, 0), np.linalg.inv(BASE_FROM_CAMERA) @ up, atol=1e-9)
    back = tree.lookup("camera", "map", SECOND, 0) @ tree.lookup("map", "camera", SECOND, 0)
    np.testing.assert_allclose(back, np.eye(4), atol=1e-12)
    np.testing.assert_array_equal(tree.lookup("anything", "anything", 0, 0), np.eye(4))
    assert tree.root("camera", SECOND) == "map"
    assert tree.frames == ["base", "camera", "lidar", "map", "odom"]


def test_lookup_rejects_unavailable_transforms():
    tree = tree_of_transforms()
    np.testing.assert_array_equal(  # within the tolerance after the end the last sample is used
        tree.lookup("odom", "base", 2 * SECOND + 9, 10), tree.lookup("odom", "base", 2 * SECOND, 0)
    )
    for stamp in (2 * SECOND + 11, -11):
        with pytest.raises(
            UnknownPoseError, match=r"from 'base' to 'odom' is unavailable at that time: the nearest sample is 0\.000 s"
        ):
            tree.lookup("map", "camera", stamp, 10)
    with pytest.raises(UnknownPoseError, match=r"no frame 'moon'; the frames are base, camera"):
        tree.lookup("moon", "camera", 0, 0)
    tree.add("island", "tree", 0, np.eye(4), static=True)
    with pytest.raises(UnknownPoseError, match="'map' and 'tree' are not connected"):
        tree.lookup("map", "tree", 0, 0)
    tree.add("camera", "map", 0, np.eye(4), static=True)
    with pytest.raises(UnknownPoseError, match="cycle"):
        tree.lookup("island", "camera", 0, 0)


def moved(x: float) -> np.ndarray:
    pose = np.eye(4)
    pose[0, 3] = x
    return pose


def test_a_frame_that_changes_its_parent_keeps_each_sample_with_its_own():
    """A gripper takes an object from a table: as in tf2, a sample is in force until the next, and never blended."""
    tree = TransformTree()
    tree.add("world", "table", 0, moved(10), static=True)
    tree.add("world", "gripper", 0, moved(20), static=True)
    for stamp, parent, x in ((0, "table", 1), (2, "table", 3), (4, "gripper", 0.5), (6, "gripper", 1.5)):
        tree.add(parent, "object", stamp * SECOND, moved(x), static=False)
    expected = {0: 11, 1: 12, 2: 13, 3: 13, 4: 20.5, 5: 21, 6: 21.5}
    for stamp, x in expected.items():
        assert tree.lookup("world", "object", stamp * SECOND, 0)[0, 3] == x
    assert tree.ancestors("object", 3 * SECOND) == ["object", "table", "world"]
    assert tree.ancestors("object", 4 * SECOND) == ["object", "gripper", "world"]
    # Samples in any order give the same.
    shuffled = TransformTree()
    for stamp, parent, x in ((6, "gripper", 1.5), (0, "table", 1), (4, "gripper", 0.5), (2, "table", 3)):
        shuffled.add(parent, "object", stamp * SECOND, moved(x), static=False)
    assert shuffled.lookup("table", "object", 3 * SECOND, 0)[0, 3] == 3
    shuffled.add("other", "table", 0, np.eye(4), static=True)
    with pytest.raises(UnknownPoseError, match="'table' and 'object' are not connected"):
        shuffled.lookup("table", "object", 5 * SECOND, 0)
    with pytest.raises(UnknownPoseError, match=r"to 'gripper' is unavailable at that time: .* 1\.000 s away"):
        shuffled.lookup("gripper", "object", 7 * SECOND, SECOND // 2)


def test_a_static_transform_is_replaced_as_a_whole():
    tree = TransformTree()
    tree.add("map", "base", SECOND, moved(1), static=False)
    tree.add("dock", "base", 0, moved(2), static=True)
    assert tree.lookup("dock", "base", 9 * SECOND, 0)[0, 3] == 2
    assert tree.is_static("base")
    tree.add("map", "base", SECOND, moved(3), static=False)
    assert tree.lookup("map", "base", SECOND, 0)[0, 3] == 3
    assert not tree.is_static("base")


@pytest.mark.parametrize(("parent", "child"), [("", "a"), ("a", ""), ("a", "/a")])
def test_transforms_without_two_frames_are_rejected(parent, child):
    with pytest.raises(InputError, match="does not name two frames"):
        TransformTree().add(parent, child, 0, np.eye(4), static=False)
