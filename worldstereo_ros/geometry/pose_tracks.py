"""Poses over time without ROS: recorded poses and transform trees, looked up between their stamps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.utils.errors import WorldStereoError


class UnknownPoseError(WorldStereoError, ValueError):
    """A pose that is not known. The message is a sentence."""


@dataclass(frozen=True)
class PoseTrack:
    """A pose over time.

    Attributes:
        stamps_ns: (N,) int64, ascending; empty for a pose that never changes.
        poses: (N, 4, 4) parent_from_child.
        fixed: there is one pose, for all times.
    """

    stamps_ns: np.ndarray
    poses: np.ndarray
    fixed: bool = False

    @classmethod
    def from_samples(cls, samples: Iterable[tuple[int, np.ndarray]], *, fixed: bool = False) -> PoseTrack:
        """From (stamp_ns, (4, 4) pose) in any order; of equal stamps the last one counts. Fixed: the last of all."""
        ordered = list(samples)
        if fixed:
            return cls(np.zeros(0, dtype=np.int64), ordered[-1][1][None], fixed=True)
        by_stamp = dict(ordered)
        stamps = np.array(sorted(by_stamp), dtype=np.int64)
        return cls(stamps, np.stack([by_stamp[int(stamp)] for stamp in stamps]))

    def at(self, stamp_ns: int, tolerance_ns: int) -> np.ndarray:
        """(4, 4) pose at a time, between the two samples around it: straight in position, slerp in rotation.

        Before the first and after the last sample the nearest one is taken, within the tolerance.

        Raises:
            UnknownPoseError: the track does not reach that time.
        """
        if self.fixed:
            return self.poses[0]
        right = int(np.searchsorted(self.stamps_ns, stamp_ns))
        if right == len(self.stamps_ns) or (right == 0 and self.stamps_ns[0] != stamp_ns):
            nearest = min(right, len(self.stamps_ns) - 1)
            gap = abs(int(self.stamps_ns[nearest]) - stamp_ns)
            if gap > tolerance_ns:
                raise UnknownPoseError(f"the nearest one is {gap / 1e9:.3f} s away")
            return self.poses[nearest]
        if self.stamps_ns[right] == stamp_ns:
            return self.poses[right]
        before, after = int(self.stamps_ns[right - 1]), int(self.stamps_ns[right])
        pair = self.poses[[right - 1, right]]
        fraction = (stamp_ns - before) / (after - before)
        return _between(pair, fraction)


class TransformTree:
    """Frames and the transforms between them, as /tf and /tf_static give them."""

    def __init__(self) -> None:
        self._samples: dict[str, tuple[str, bool, list[tuple[int, np.ndarray]]]] = {}
        self._tracks: dict[str, PoseTrack] = {}

    def add(self, parent: str, child: str, stamp_ns: int, parent_from_child: np.ndarray, *, fixed: bool) -> None:
        """One transform. A child that gets another parent keeps only the newer one."""
        parent, child = parent.lstrip("/"), child.lstrip("/")
        known = self._samples.get(child)
        if known is None or known[:2] != (parent, fixed):
            known = self._samples[child] = (parent, fixed, [])
        known[2].append((stamp_ns, parent_from_child))
        self._tracks.pop(child, None)

    @property
    def frames(self) -> list[str]:
        """Names of all frames, sorted."""
        return sorted(set(self._samples) | {parent for parent, _, _ in self._samples.values()})

    def root(self, frame: str) -> str:
        """The topmost frame above this one: itself where nothing is above it."""
        return self._chain(frame.lstrip("/"))[-1]

    def lookup(self, target: str, source: str, stamp_ns: int, tolerance_ns: int) -> np.ndarray:
        """(4, 4) target_from_source at a time.

        Raises:
            UnknownPoseError: a frame is not known, the two are not connected, or a transform does not reach that time.
        """
        target, source = target.lstrip("/"), source.lstrip("/")
        frames = self.frames
        for frame in (target, source):
            if frame not in frames and target != source:
                raise UnknownPoseError(f"There is no frame '{frame}'; the frames are {', '.join(frames) or 'none'}.")
        up, down = self._chain(source), self._chain(target)
        meeting = next((frame for frame in up if frame in down), None)
        if meeting is None:
            raise UnknownPoseError(f"The frames '{target}' and '{source}' are not connected by transforms.")
        meeting_from_source = self._climb(up[: up.index(meeting)], stamp_ns, tolerance_ns)
        meeting_from_target = self._climb(down[: down.index(meeting)], stamp_ns, tolerance_ns)
        return invert_pose(meeting_from_target) @ meeting_from_source

    def _chain(self, frame: str) -> list[str]:
        """The frame and its ancestors."""
        chain = [frame]
        while chain[-1] in self._samples:
            parent = self._samples[chain[-1]][0]
            if parent in chain:
                raise UnknownPoseError(f"The transforms go in a ring through '{parent}'.")
            chain.append(parent)
        return chain

    def _climb(self, frames: list[str], stamp_ns: int, tolerance_ns: int) -> np.ndarray:
        """The pose of the first frame in the parent of the last one."""
        pose = np.eye(4)
        for frame in frames:
            parent, fixed, samples = self._samples[frame]
            if frame not in self._tracks:
                self._tracks[frame] = PoseTrack.from_samples(samples, fixed=fixed)
            try:
                pose = self._tracks[frame].at(stamp_ns, tolerance_ns) @ pose
            except UnknownPoseError as error:
                raise UnknownPoseError(
                    f"The transform from '{frame}' to '{parent}' is not known then: {error}."
                ) from None
        return pose


def _between(pair: np.ndarray, fraction: float) -> np.ndarray:
    from scipy.spatial.transform import Rotation, Slerp

    pose = np.eye(4)
    pose[:3, 3] = (1 - fraction) * pair[0, :3, 3] + fraction * pair[1, :3, 3]
    pose[:3, :3] = Slerp([0, 1], Rotation.from_matrix(pair[:, :3, :3]))(fraction).as_matrix()
    return pose
