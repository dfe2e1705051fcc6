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
from worldstereo_ros.utils.errors import InputError, WorldStereoError


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


@dataclass(frozen=True)
class _Link:
    """The samples of one frame, each to the parent that it was sent with.

    Attributes:
        track: poses of the frame in its parents.
        parents: name of the parent of each pose.
    """

    track: PoseTrack
    parents: tuple[str, ...]

    def index_at(self, stamp_ns: int) -> int:
        """The sample in force at a time: the newest that is not later, else the first."""
        if self.track.static:
            return 0
        return max(int(np.searchsorted(self.track.stamps_ns, stamp_ns, side="right")) - 1, 0)

    def at(self, stamp_ns: int, tolerance_ns: int) -> np.ndarray:
        """(4, 4) pose in the parent of that time; never interpolated between two parents, as in tf2."""
        index = self.index_at(stamp_ns)
        if index + 1 < len(self.parents) and self.parents[index + 1] != self.parents[index]:
            first = int(self.track.stamps_ns[index])
            if stamp_ns >= first:
                return self.track.poses[index]
        return self.track.at(stamp_ns, tolerance_ns)


class TransformTree:
    """A tree of coordinate frames over time, filled from /tf and /tf_static.

    As in tf2, a frame may change its parent: each sample keeps the parent that it was sent with, and is in force until
    the next one.
    """

    def __init__(self) -> None:
        self._samples: dict[str, tuple[bool, list[tuple[int, str, np.ndarray]]]] = {}
        self._links: dict[str, _Link] = {}
        self._names: set[str] = set()

    def add(self, parent: str, child: str, stamp_ns: int, parent_from_child: np.ndarray, *, static: bool) -> None:
        """Adds one transform. A static one replaces all others of its child, and is replaced by any other.

        Raises:
            InputError: a name is empty, or both are the same.
        """
        parent, child = parent.lstrip("/"), child.lstrip("/")
        if not parent or not child or parent == child:
            raise InputError(f"The transform from '{child}' to '{parent}' does not name two frames.")
        entry = self._samples.get(child)
        if entry is None or static or entry[0]:
            entry = self._samples[child] = (static, [])
        entry[1].append((stamp_ns, parent, parent_from_child))
        self._links.pop(child, None)
        self._names.update((parent, child))

    @property
    def frames(self) -> list[str]:
        """Names of all frames, sorted."""
        return sorted(self._names)

    def has(self, frame: str) -> bool:
        """Whether any transform names the frame."""
        return frame.lstrip("/") in self._names

    def is_static(self, frame: str) -> bool:
        """Whether a frame is fixed in its parent."""
        entry = self._samples.get(frame.lstrip("/"))
        return entry is not None and entry[0]

    def ancestors(self, frame: str, stamp_ns: int) -> list[str]:
        """Returns a frame, its parent at a time, and so on up to the root.

        Raises:
            UnknownPoseError: the transforms form a cycle.
        """
        frames = [frame.lstrip("/")]
        while frames[-1] in self._samples:
            link = self._link(frames[-1])
            parent = link.parents[link.index_at(stamp_ns)]
            if parent in frames:
                raise UnknownPoseError(f"The transforms form a cycle through '{parent}'.")
            frames.append(parent)
        return frames

    def root(self, frame: str, stamp_ns: int) -> str:
        """Returns the topmost ancestor of a frame at a time; the frame itself if it has no parent."""
        return self.ancestors(frame, stamp_ns)[-1]

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
        for frame in (target, source):
            if frame not in self._names and target != source:
                raise UnknownPoseError(
                    f"There is no frame '{frame}'; the frames are {', '.join(self.frames) or 'none'}."
                )
        from_source, from_target = self.ancestors(source, stamp_ns), self.ancestors(target, stamp_ns)
        common = next((frame for frame in from_source if frame in from_target), None)
        if common is None:
            raise UnknownPoseError(f"The frames '{target}' and '{source}' are not connected by transforms.")
        common_from_source = self._chain(from_source[: from_source.index(common)], stamp_ns, tolerance_ns)
        common_from_target = self._chain(from_target[: from_target.index(common)], stamp_ns, tolerance_ns)
        return invert_pose(common_from_target) @ common_from_source

    def _link(self, frame: str) -> _Link:
        link = self._links.get(frame)
        if link is None:
            static, samples = self._samples[frame]
            by_stamp = {stamp: (parent, pose) for stamp, parent, pose in samples}
            stamps = sorted(by_stamp)
            track = PoseTrack.from_samples(((stamp, by_stamp[stamp][1]) for stamp in stamps), static=static)
            link = self._links[frame] = _Link(track, tuple(by_stamp[stamp][0] for stamp in stamps))
        return link

    def _chain(self, frames: list[str], stamp_ns: int, tolerance_ns: int) -> np.ndarray:
        """Multiplies the transforms of consecutive frames: the pose of the first in the parent of the last."""
        pose = np.eye(4)
        for frame in frames:
            link = self._link(frame)
            try:
                pose = link.at(stamp_ns, tolerance_ns) @ pose
            except UnknownPoseError as error:
                parent = link.parents[link.index_at(stamp_ns)]
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
