"""Keyframes of a path that grows: how one is made of a frame, what ties two, and how their number is halved."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from worldstereo_ros.geometry.similarity import Similarity
from worldstereo_ros.pipelines.pointmaps.keyframes import Keyframe, Loop, make_keyframe
from worldstereo_ros.pipelines.pointmaps.loops import LOOP_SIGMA, MEASURED_SCALE
from worldstereo_ros.pipelines.pointmaps.pose_graph import Edges, Similarities
from worldstereo_ros.pipelines.pointmaps.tying import select
from worldstereo_ros.pipelines.pointmaps.types import Pointmaps


@dataclass
class Node:
    """A keyframe of the chain.

    Attributes:
        keyframe: its pose and depth are of the chain, before loops are closed.
        stamp_ns: of its image.
        world: from its axes, in the unit of its depth, to the world.
        link: (3,) standard deviations of the way from the keyframe of its shot before, see `pose_graph.Edges`; None if
            it is the first one.
    """

    keyframe: Keyframe
    stamp_ns: int
    world: Similarity
    link: np.ndarray | None

    @property
    def world_pose(self) -> np.ndarray:
        """(4, 4) world_from_camera."""
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = self.world.rotation, self.world.translation
        return pose


def keyframe_from(maps: Pointmaps, image: np.ndarray, index: int, frame: int, factor: float) -> Keyframe:
    """A keyframe of a frame of point maps, its depth times a factor.

    Args:
        maps: of several frames.
        image: (H, W, 3) uint8 of any size.
        index: of the frame in them.
        frame: of the frame in the stream.
        factor: from the unit of the maps.
    """
    one = select(maps, slice(index, index + 1))
    depth = np.where(one.dynamic[0], np.float32(0), one.depth[0] * np.float32(factor))
    return make_keyframe(image, depth, one, 0, frame)


def thinned(nodes: Sequence[Node], kept_frames: Collection[int]) -> list[Node]:
    """Every other node; the first one, the last one and those of some frames stay in any case.

    The way over a node that goes is as uncertain as its two parts together.
    """
    out: list[Node] = []
    gone: dict[int, np.ndarray | None] = {}  # by shot, the link that ends at the node that goes
    for index, node in enumerate(nodes):
        shot = node.keyframe.shot
        if shot in gone and node.link is not None:
            earlier = gone.pop(shot)
            length = float(np.linalg.norm(nodes[index - 1].keyframe.pose[:3, 3] - node.keyframe.pose[:3, 3]))
            node.link = None if earlier is None else _both(earlier, node.link, length)
        if index % 2 == 0 or index == len(nodes) - 1 or node.keyframe.frame in kept_frames:
            out.append(node)
        else:
            gone[shot] = node.link
    return out


def _both(one: np.ndarray, two: np.ndarray, length: float) -> np.ndarray:
    """Standard deviations of two links in a row, of which the second has a length."""
    out = np.hypot(one, two)
    out[1] = np.sqrt(one[1] ** 2 + two[1] ** 2 + (length * one[0]) ** 2 + (length * one[2]) ** 2)
    return out


def similarity_of(pose: np.ndarray) -> Similarity:
    """A rigid pose (4, 4) as a similarity."""
    return Similarity(1.0, pose[:3, :3], pose[:3, 3])


def moved_keyframe(keyframe: Keyframe, similarity: Similarity) -> Keyframe:
    """A keyframe in another world and unit."""
    factor = np.float32(similarity.scale)
    return replace(
        keyframe, pose=similarity.poses(keyframe.pose), depth=keyframe.depth * factor,
        small_depth=keyframe.small_depth * factor,
    )  # fmt: skip


def loop_edges(loops: Sequence[Loop], nodes: Sequence[Node], rows: dict[int, int]) -> Edges:
    """Loops as edges between nodes, whose rows are given by the numbers of their frames."""
    first = np.array([rows[loop.first] for loop in loops])
    second = np.array([rows[loop.second] for loop in loops])
    relative = Similarities.of([loop.relative for loop in loops])
    sigma = np.stack([loop_sigma(nodes[a], nodes[b]) for a, b in zip(first, second, strict=True)])
    return Edges(first, second, relative, sigma)


def loop_sigma(one: Node, two: Node) -> np.ndarray:
    """(3,) standard deviations of a loop between two nodes, see `pose_graph.Edges`."""
    turn, shift, grown = LOOP_SIGMA
    measured = one.keyframe.measured and two.keyframe.measured
    return np.array([turn, shift * one.keyframe.median_depth, MEASURED_SCALE if measured else grown])
