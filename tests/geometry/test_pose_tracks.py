"""Transform trees over time: chained lookups, interpolation, and errors of unavailable transforms."""

import numpy as np
import pytest
from helpers.recordings import BASE_FROM_CAMERA, SECOND

from worldstereo_ros.geometry.pose_tracks import TransformTree, UnknownPoseError
from worldstereo_ros.geometry.trajectories import trajectory


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
    assert tree.root("camera") == "map"
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
