"""Where frames are: tf2_ros where it is installed, else a buffer of our own fed from /tf and /tf_static.

Both answer the same two questions, so that the node does not know which one it has.
"""

from __future__ import annotations

import bisect
import threading
from typing import Protocol

import numpy as np
from pytransform3d.transformations import pq_slerp, transform_from_pq

from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.utils.errors import WorldStereoError

# A transform this much older than the newest one of its frame means that time was set back (a bag starts over).
SET_BACK_NS = 2_000_000_000


class TransformUnavailableError(WorldStereoError, LookupError):
    """A transform is not known; the message says why.

    Attributes:
        may_come: it is worth waiting for.
        camera_unknown: not even the name of the camera's frame is known.
    """

    def __init__(self, message: str, *, may_come: bool, camera_unknown: bool = False) -> None:
        super().__init__(message)
        self.may_come, self.camera_unknown = may_come, camera_unknown


class TransformSource(Protocol):
    """What the node asks of TF."""

    def lookup(self, target: str, source: str, stamp_ns: int | None) -> tuple[np.ndarray, int]:
        """(target_from_source (4, 4), its stamp in ns) at a time, or the newest where None. Raises TransformMissing."""
        ...

    def forget_after(self, stamp_ns: int) -> None:
        """Time was set back to this: what came before that is later is forgotten, static transforms are not."""
        ...


class TransformBuffer:
    """A tree of frames over time, interpolated between samples. Safe to use from several threads."""

    def __init__(self, seconds: float = 10.0) -> None:
        self._span_ns = int(seconds * 1e9)
        self._parent: dict[str, str] = {}
        self._static: dict[str, np.ndarray] = {}
        self._stamps: dict[str, list[int]] = {}
        self._samples: dict[str, list[np.ndarray]] = {}
        self._lock = threading.Lock()

    def insert(
        self,
        parent: str,
        child: str,
        translation: tuple[float, float, float],
        quaternion_wxyz: tuple[float, float, float, float],
        stamp_ns: int,
        *,
        static: bool = False,
    ) -> bool:
        """Takes in `parent_from_child`. A transform that is none (not finite, no rotation, no name) is left out.

        Returns:
            True where time was set back, so that what was known of this frame is forgotten.
        """
        parent, child = parent.lstrip("/"), child.lstrip("/")
        sample = np.array([*translation, *quaternion_wxyz], dtype=np.float64)
        norm = np.linalg.norm(sample[3:])
        if not parent or not child or parent == child or not np.isfinite(sample).all() or abs(norm - 1) > 0.01:
            return False
        sample[3:] /= norm
        with self._lock:
            self._parent[child] = parent
            if static:
                self._static[child] = transform_from_pq(sample)
                return False
            self._static.pop(child, None)
            stamps = self._stamps.setdefault(child, [])
            samples = self._samples.setdefault(child, [])
            set_back = bool(stamps) and stamp_ns < stamps[-1] - SET_BACK_NS
            if set_back:
                stamps.clear()
                samples.clear()
            at = bisect.bisect_left(stamps, stamp_ns)
            if at < len(stamps) and stamps[at] == stamp_ns:
                samples[at] = sample
            else:
                stamps.insert(at, stamp_ns)
                samples.insert(at, sample)
            old = bisect.bisect_left(stamps, stamps[-1] - self._span_ns)
            if old > 64:  # in batches: dropping the head of a list costs its length
                del stamps[:old], samples[:old]
            return set_back

    def lookup(self, target: str, source: str, stamp_ns: int | None) -> tuple[np.ndarray, int]:
        """(target_from_source (4, 4) float64, stamp in ns); see `TransformSource`."""
        target, source = target.lstrip("/"), source.lstrip("/")
        with self._lock:
            up_source, up_target = self._chain(source), self._chain(target)
            common = next((frame for frame in up_source if frame in up_target), None)
            if common is None:
                raise TransformUnavailableError(self._explain(target, source), may_come=True)
            source_links = up_source[: up_source.index(common)]
            target_links = up_target[: up_target.index(common)]
            moving = [frame for frame in source_links + target_links if frame not in self._static]
            if stamp_ns is None:
                stamp_ns = min((self._stamps[frame][-1] for frame in moving), default=0)
            return invert_pose(self._along(target_links, stamp_ns)) @ self._along(source_links, stamp_ns), stamp_ns

    def forget_after(self, stamp_ns: int) -> None:
        """See `TransformSource`. What already came of the new time is kept."""
        with self._lock:
            for child in list(self._stamps):
                kept = bisect.bisect_right(self._stamps[child], stamp_ns + SET_BACK_NS)
                del self._stamps[child][kept:], self._samples[child][kept:]
                if not kept:
                    del self._stamps[child], self._samples[child]
                    if child not in self._static:
                        self._parent.pop(child, None)

    def frames(self) -> list[str]:
        """The names of all frames that are known."""
        with self._lock:
            return sorted(set(self._parent) | set(self._parent.values()))

    def _chain(self, frame: str) -> list[str]:
        chain = [frame]
        while chain[-1] in self._parent and len(chain) < 100:  # a loop in TF must not hang the node
            chain.append(self._parent[chain[-1]])
        return chain

    def _along(self, links: list[str], stamp_ns: int) -> np.ndarray:
        pose = np.eye(4)
        for child in links:  # from the leaf to the common frame
            pose = self._at(child, stamp_ns) @ pose
        return pose

    def _at(self, child: str, stamp_ns: int) -> np.ndarray:
        """parent_from_child at a time, between its two neighbours in time."""
        if child in self._static:
            return self._static[child]
        stamps, samples = self._stamps[child], self._samples[child]
        after = bisect.bisect_left(stamps, stamp_ns)
        if after < len(stamps) and stamps[after] == stamp_ns:
            return transform_from_pq(samples[after])
        name = f"{self._parent[child]} <- {child}"
        if after == len(stamps):
            late = (stamp_ns - stamps[-1]) / 1e9
            raise TransformUnavailableError(
                f"The transform {name} is {late:.3f} s too old for stamp {stamp_ns / 1e9:.3f}. Does its publisher run, "
                "and do all nodes agree on use_sim_time?",
                may_come=True,
            )
        if after == 0:
            early = (stamps[0] - stamp_ns) / 1e9
            raise TransformUnavailableError(
                f"The stamp {stamp_ns / 1e9:.3f} is {early:.3f} s older than all that is kept of {name}. Is the image "
                "stamped by another clock, or `tf_cache_time` too short?",
                may_come=False,
            )
        fraction = (stamp_ns - stamps[after - 1]) / (stamps[after] - stamps[after - 1])
        return transform_from_pq(pq_slerp(samples[after - 1], samples[after], fraction))

    def _explain(self, target: str, source: str) -> str:
        known = sorted(set(self._parent) | set(self._parent.values()))
        missing = [frame for frame in (target, source) if frame not in known]
        if not known:
            return f"TF has no transform at all, so {target} <- {source} is not known. Is anything published on /tf?"
        listed = ", ".join(known[:12]) + (" ..." if len(known) > 12 else "")
        if missing:
            return f"TF knows no frame '{missing[0]}', so {target} <- {source} is not known. It knows: {listed}."
        return f"TF has no connection between '{target}' and '{source}'. It knows: {listed}."


def open_transforms(node, seconds: float, on_set_back) -> TransformSource:
    """The transforms of a node: tf2_ros where it is installed, else our own buffer.

    Args:
        node: whose executor the topics are read on.
        seconds: how long transforms are kept.
        on_set_back: called without arguments when time was set back (our own buffer only; tf2 has its own way).
    """
    try:
        import tf2_ros  # noqa: F401
    except ImportError:
        return _TopicTransforms(node, seconds, on_set_back)
    return _Tf2Transforms(node, seconds)


class _TopicTransforms(TransformBuffer):
    """Our own buffer, fed from the two topics."""

    def __init__(self, node, seconds: float, on_set_back) -> None:
        from tf2_msgs.msg import TFMessage

        from worldstereo_ros.ros.conversions import qos

        super().__init__(seconds)
        self._on_set_back = on_set_back
        self._node = node
        self._subscriptions = [
            node.create_subscription(TFMessage, "/tf", lambda message: self._take(message, False), qos.TF),
            node.create_subscription(TFMessage, "/tf_static", lambda message: self._take(message, True), qos.TF_STATIC),
        ]

    def _take(self, message, static: bool) -> None:
        set_back = False
        for item in message.transforms:
            move, turn, stamp = item.transform.translation, item.transform.rotation, item.header.stamp
            set_back |= self.insert(
                item.header.frame_id,
                item.child_frame_id,
                (move.x, move.y, move.z),
                (turn.w, turn.x, turn.y, turn.z),
                stamp.sec * 1_000_000_000 + stamp.nanosec,
                static=static,
            )
        if set_back:
            self._on_set_back()

    def close(self) -> None:
        """Stops listening."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions = []


class _Tf2Transforms:
    """The buffer of tf2_ros."""

    def __init__(self, node, seconds: float) -> None:
        import tf2_ros
        from rclpy.duration import Duration

        self._tf2 = tf2_ros
        self._buffer = tf2_ros.Buffer(cache_time=Duration(seconds=seconds), node=node)
        self._listener = tf2_ros.TransformListener(self._buffer, node)

    def lookup(self, target: str, source: str, stamp_ns: int | None) -> tuple[np.ndarray, int]:
        """See `TransformSource`."""
        from rclpy.time import Time

        try:
            found = self._buffer.lookup_transform(target, source, Time(nanoseconds=stamp_ns or 0))
        except self._tf2.TransformException as error:
            past = "past" in str(error)
            raise TransformUnavailableError(
                f"TF cannot say {target} <- {source}: {error}", may_come=not past
            ) from error
        move, turn = found.transform.translation, found.transform.rotation
        matrix = transform_from_pq([move.x, move.y, move.z, turn.w, turn.x, turn.y, turn.z])
        stamp = found.header.stamp
        return matrix, stamp.sec * 1_000_000_000 + stamp.nanosec

    def forget_after(self, stamp_ns: int) -> None:
        """See `TransformSource`. tf2 ignores what is older than what it has, so all that moves is forgotten."""
        self._buffer.clear()

    def close(self) -> None:
        """Stops listening."""
        self._listener.unregister()
