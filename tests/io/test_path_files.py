"""Files of camera paths: each convention gives the same poses; contradictions and arrays without one are refused."""

import json

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from worldstereo_ros.geometry.poses import invert_pose, quaternion_from_pose
from worldstereo_ros.geometry.trajectories import trajectory
from worldstereo_ros.io.files import DatasetError
from worldstereo_ros.io.path_files import AXES, read_path_file, write_path_file
from worldstereo_ros.io.posed_sequences import read_poses

START = np.eye(4)
START[:3, :3] = Rotation.from_euler("xyz", [0.3, -0.2, 1.0]).as_matrix()
START[:3, 3] = (1, 2, -3)
POSES = trajectory("orbit", START, 4)


def write(file, poses, header):
    lines = [*header]
    for index, pose in enumerate(poses):
        lines.append(" ".join(repr(float(v)) for v in (index, *np.concatenate(quaternion_from_pose(pose)))))
    file.write_text("\n".join(lines))
    return file


@pytest.mark.parametrize("axes", list(AXES))
@pytest.mark.parametrize("direction", ["world_from_camera", "camera_from_world"])
def test_every_convention_gives_the_same_poses(tmp_path, direction, axes):
    poses = POSES.copy()
    # A camera that looks along -z in OpenGL, along +x in ROS.
    poses[:, :3, :3] = poses[:, :3, :3] @ AXES[axes].T
    if direction == "camera_from_world":
        poses = invert_pose(poses)
    file = write(tmp_path / "path.txt", poses, [f"# Poses: {direction}", f"#axes: {axes.upper()}, as it is called"])
    content = read_path_file(file)
    np.testing.assert_allclose(content.poses, POSES, atol=1e-9)
    assert content.metric is None
    assert content.convention == f"{direction}, {axes}"


def test_axes_are_those_of_the_conventions():
    forward, up = np.array([0.0, 0, 1]), np.array([0.0, -1, 0])  # OpenCV
    np.testing.assert_array_equal(AXES["opengl"] @ forward, [0, 0, -1])
    np.testing.assert_array_equal(AXES["opengl"] @ up, [0, 1, 0])
    np.testing.assert_array_equal(AXES["ros"] @ forward, [1, 0, 0])
    np.testing.assert_array_equal(AXES["ros"] @ up, [0, 0, 1])


@pytest.mark.parametrize("metric", [True, False])
def test_written_paths_come_back_equal_by_two_readers(tmp_path, metric):
    write_path_file(tmp_path / "path.txt", POSES, metric=metric)
    content = read_path_file(tmp_path / "path.txt")
    np.testing.assert_allclose(content.poses, POSES, atol=1e-9)
    assert content.metric is metric
    indices, poses = read_poses(tmp_path / "path.txt")
    np.testing.assert_allclose(poses, POSES, atol=1e-9)
    assert indices.tolist() == [0, 1, 2, 3]


def test_a_plain_poses_txt_is_world_from_camera(tmp_path):
    content = read_path_file(write(tmp_path / "poses.txt", POSES, ["# index tx ty tz qx qy qz qw (camera-to-world)"]))
    np.testing.assert_allclose(content.poses, POSES, atol=1e-9)


def test_camera_paths_of_nerfstudio_are_read(tmp_path):
    poses = POSES.copy()
    poses[:, :3, :3] = poses[:, :3, :3] @ AXES["opengl"]
    frames = [{"camera_to_world": pose.reshape(-1).tolist(), "fov": 50} for pose in poses]
    (tmp_path / "camera_path.json").write_text(json.dumps({"camera_path": frames}))
    np.testing.assert_allclose(read_path_file(tmp_path / "camera_path.json").poses, POSES, atol=1e-9)
    for broken in ({}, {"camera_path": []}, {"camera_path": [{}]}, {"camera_path": [{"camera_to_world": [1, 2]}]},
                   {"camera_path": [{"camera_to_world": [2.0] * 16}]}):  # fmt: skip
        (tmp_path / "camera_path.json").write_text(json.dumps(broken))
        with pytest.raises(DatasetError, match=r"camera_path\.json"):
            read_path_file(tmp_path / "camera_path.json")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (["# poses: w2c"], "'poses: w2c' is unknown; one of world_from_camera, camera_from_world"),
        (["# axes: blender"], "one of opencv, opengl, ros was expected"),
        (["# unit: feet"], "one of metres, arbitrary was expected"),
        (["# axes: ros", "# axes: opencv"], "line 2: 'axes: opencv' contradicts 'ros' above"),
    ],
)
def test_unknown_and_contradicting_conventions_are_refused(tmp_path, header, message):
    with pytest.raises(DatasetError, match=message):
        read_path_file(write(tmp_path / "path.txt", POSES, header))


def test_arrays_without_a_convention_are_refused(tmp_path):
    np.save(tmp_path / "path.npy", POSES)
    with pytest.raises(DatasetError, match="does not say whether its poses are camera-to-world"):
        read_path_file(tmp_path / "path.npy")
    (tmp_path / "empty.txt").write_text("# axes: ros\n")
    with pytest.raises(DatasetError, match="has no poses"):
        read_path_file(tmp_path / "empty.txt")
    (tmp_path / "bad.txt").write_text("0 1 2 3 0 0 0 2")
    with pytest.raises(DatasetError, match="line 1: The quaternion"):
        read_path_file(tmp_path / "bad.txt")
