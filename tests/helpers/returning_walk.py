"""A walk that returns to where it began, with a path that drifts, whole or as two shots."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.spatial.transform import Rotation

from helpers.box_room import CAMERA, turned
from worldstereo_ros.geometry.cameras import unproject
from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.geometry.similarity import Similarity
from worldstereo_ros.pipelines.pointmaps import Pointmaps


def drifted(poses, turn=0.006, growth=0.004):
    """Poses whose steps turn too far and grow, and the logarithm of the unit of each."""
    steps = invert_pose(poses[:-1]) @ poses[1:]
    out, logs = [np.eye(4)], growth * np.arange(len(poses))
    for index, step in enumerate(steps):
        wrong = step.copy()
        wrong[:3, :3] = step[:3, :3] @ Rotation.from_rotvec([0, turn, turn / 3]).as_matrix()
        wrong[:3, 3] *= np.exp(logs[index + 1])
        out.append(out[-1] @ wrong)
    return np.stack(out), logs


def maps_of(poses, depths, dynamic=None, scale_from="depth network"):
    depths = np.stack(depths).astype(np.float32)
    points = np.stack([unproject(depth, CAMERA, pose) for depth, pose in zip(depths, poses, strict=True)])
    moving = np.zeros(depths.shape, bool) if dynamic is None else dynamic
    count = len(poses)
    return Pointmaps(
        points.astype(np.float32), np.ones(depths.shape, np.float32), np.ones(depths.shape, bool), moving, poses,
        CAMERA, scale_from, np.ones(count, bool), np.zeros(count, np.int64), np.zeros((count, 6, 6)),
    )  # fmt: skip


def returning_walk(count):
    """Poses that go a way and come back, turned to the same side."""
    phase = np.sin(np.linspace(0, np.pi, count))
    poses = np.stack([turned(25 * x) for x in phase])
    poses[:, :3, 3] = np.stack([1.2 * phase - 0.5, 0.1 * phase, 0.6 * phase], axis=1)
    return poses


def cut_in_two(returning, size=1.4):
    """Two shots of a walk: the second has a world and a unit of its own, and shows the place where the first began."""
    poses, images, depths = returning
    rows = [np.arange(0, 14), np.arange(32, 46)]
    world = Similarity(size, turned(70, 10)[:3, :3], np.array([4.0, 1.0, -2.0]))
    maps = [
        maps_of(poses[rows[0]], [depths[row] for row in rows[0]]),
        maps_of(world.poses(poses[rows[1]]), [depths[row] * np.float32(size) for row in rows[1]]),
    ]
    maps[1] = replace(maps[1], shot=np.ones(14, np.int64))
    return np.concatenate(rows), maps, images, poses, depths
