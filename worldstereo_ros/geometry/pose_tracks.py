"""Poses and transform trees over time, without ROS: interpolated lookups between stamps.

Interpolation is that of tf2: linear in translation, slerp in rotation. pytransform3d's `TemporalTransformManager` does
not fit here: it moves along screws (for a metre with a quarter turn the midpoint is 0.2 m beside tf2's), accepts either
no time outside the samples or any time at all instead of a tolerance, and takes about twice as long per lookup.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.utils.errors import WorldStereoError


class UnknownPoseError(WorldStereoError, ValueError):
    """A pose or transform that is unavailable at the requested time; the message says why."""


@dataclass(frozen=True)
class PoseTrack:
    """A sampled pose over time.

    Attributes:
        stamps_ns: (N,) int64 nanoseconds, ascending; empty for a static pose.
        poses: (N, 4, 4) float64 parent_from_child.
        static: the track has one pose, valid at all times.
    """

    stamps_ns: np.ndarray
    poses: np.ndarray
    static: bool = False

    @classmethod
    def from_samples(cls, samples: Iterable[tuple[int, np.ndarray]], *, static: bool = False) -> PoseTrack:
        """Builds a track from (stamp_ns, (4, 4) pose) samples in any order.

        The last sample of equal stamps is kept; of a static pose only the last sample.
        """
        ordered = list(samples)
        if static:
            return cls(np.zeros(0, dtype=np.int64), ordered[-1][1][None], static=True)
        by_stamp = dict(ordered)
        stamps = np.array(sorted(by_stamp), dtype=np.int64)
        return cls(stamps, np.stack([by_stamp[int(stamp)] for stamp in stamps]))

    def at(self, stamp_ns: int, tolerance_ns: int) -> np.ndarray:
        """Interpolates the pose at a time: linear in translation, slerp in rotation.

        Args:
            stamp_ns: time in nanoseconds.
            tolerance_ns: how far before the first or after the last sample that sample is used.

        Returns:
            (4, 4) float64 parent_from_child.

        Raises:
            UnknownPoseError: the time is farther than the tolerance outside the track.
        """
        if self.static:
            return self.poses[0]
        right = int(np.searchsorted(self.stamps_ns, stamp_ns))
        if right == len(self.stamps_ns) or (right == 0 and self.stamps_ns[0] != stamp_ns):
            nearest = min(right, len(self.stamps_ns) - 1)
            gap_ns = abs(int(self.stamps_ns[nearest]) - stamp_ns)
            if gap_ns > tolerance_ns:
                raise UnknownPoseError(f"the nearest sample is {gap_ns / 1e9:.3f} s away")
            return self.poses[nearest]
        if self.stamps_ns[right] == stamp_ns:
            return self.poses[right]
        before, after = int(self.stamps_ns[right - 1]), int(self.stamps_ns[right])
        pair = self.poses[[right - 1, right]]
        fraction = (stamp_ns - before) / (after - before)
        return _interpolate_pair(pair, fraction)


class TransformTree:
    """A tree of coordinate frames over time, filled from /tf and /tf_static."""

    def __init__(self) -> None:
        self._samples: dict[str, tuple[str, bool, list[tuple[int, np.ndarray]]]] = {}
        self._tracks: dict[str, PoseTrack] = {}

    def add(self, parent: str, child: str, stamp_ns: int, parent_from_child: np.ndarray, *, static: bool) -> None:
        """Adds one transform. When a child gets another parent, transforms to the old parent are discarded."""
        parent, child = parent.lstrip("/"), child.lstrip("/")
        entry = self._samples.get(child)
        if entry is None or entry[:2] != (parent, static):
            entry = self._samples[child] = (parent, static, [])
        entry[2].append((stamp_ns, parent_from_child))
        self._tracks.pop(child, None)

    @property
    def frames(self) -> list[str]:
        """Names of all frames, sorted."""
        return sorted(set(self._samples) | {parent for parent, _, _ in self._samples.values()})

    def root(self, frame: str) -> str:
        """Returns the topmost ancestor of a frame; the frame itself if it has no parent."""
        return self._ancestors(frame.lstrip("/"))[-1]

    def lookup(self, target: str, source: str, stamp_ns: int, tolerance_ns: int) -> np.ndarray:
        """Looks up the transform between two frames at a time.

        Args:
            target, source: frame names.
            stamp_ns: time in nanoseconds.
            tolerance_ns: see `PoseTrack.at`.

        Returns:
            (4, 4) float64 target_from_source.

        Raises:
            UnknownPoseError: a frame is unknown, the frames are not connected, or a transform is not available then.
        """
        target, source = target.lstrip("/"), source.lstrip("/")
        frames = self.frames
        for frame in (target, source):
            if frame not in frames and target != source:
                raise UnknownPoseError(f"There is no frame '{frame}'; the frames are {', '.join(frames) or 'none'}.")
        from_source, from_target = self._ancestors(source), self._ancestors(target)
        common = next((frame for frame in from_source if frame in from_target), None)
        if common is None:
            raise UnknownPoseError(f"The frames '{target}' and '{source}' are not connected by transforms.")
        common_from_source = self._chain(from_source[: from_source.index(common)], stamp_ns, tolerance_ns)
        common_from_target = self._chain(from_target[: from_target.index(common)], stamp_ns, tolerance_ns)
        return invert_pose(common_from_target) @ common_from_source

    def _ancestors(self, frame: str) -> list[str]:
        """The frame, its parent, and so on up to the root."""
        frames = [frame]
        while frames[-1] in self._samples:
            parent = self._samples[frames[-1]][0]
            if parent in frames:
                raise UnknownPoseError(f"The transforms form a cycle through '{parent}'.")
            frames.append(parent)
        return frames

    def _chain(self, frames: list[str], stamp_ns: int, tolerance_ns: int) -> np.ndarray:
        """Multiplies the transforms of consecutive frames: the pose of the first in the parent of the last."""
        pose = np.eye(4)
        for frame in frames:
            parent, static, samples = self._samples[frame]
            if frame not in self._tracks:
                self._tracks[frame] = PoseTrack.from_samples(samples, static=static)
            try:
                pose = self._tracks[frame].at(stamp_ns, tolerance_ns) @ pose
            except UnknownPoseError as error:
                raise UnknownPoseError(
                    f"The transform from '{frame}' to '{parent}' is unavailable at that time: {error}."
                ) from None
        return pose


def _interpolate_pair(pair: np.ndarray, fraction: float) -> np.ndarray:
    """Interpolates between two poses (2, 4, 4); fraction 0 is the first."""
    from scipy.spatial.transform import Rotation, Slerp

    pose = np.eye(4)
    pose[:3, 3] = (1 - fraction) * pair[0, :3, 3] + fraction * pair[1, :3, 3]
    pose[:3, :3] = Slerp([0, 1], Rotation.from_matrix(pair[:, :3, :3]))(fraction).as_matrix()
    return pose
