"""Transforms between frames: tf2_ros where it is installed, else `TransformBuffer`, fed from /tf and /tf_static.

`TransformBuffer` is not built on `geometry.pose_tracks`, which looks up complete recordings: its tracks are sorted
arrays, which each new sample rebuilds. With 10 s of samples at 100 Hz, an insertion and a lookup take 20 to 30 times as
long, and limits of the cache, time jumps, the newest common stamp and the checks of transforms would have to be added.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Callable
from typing import Protocol

import numpy as np
from pytransform3d.transformations import pq_slerp, transform_from_pq
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.time import Time
from tf2_msgs.msg import TFMessage

from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.ros.conversions import messages, qos
from worldstereo_ros.utils.errors import WorldStereoError

TIME_JUMP_NS = 2_000_000_000  # a stamp this much older than the newest one means that time jumped back (a bag loops)
MAX_CHAIN = 100  # frames from a leaf to the root; ends the search in a cyclic tree
MAX_LISTED_FRAMES = 12  # in error messages
MIN_EXPIRED = 64  # samples that are removed at once, because removing the head of a list costs its length


class TransformUnavailableError(WorldStereoError, LookupError):
    """A transform is not available; the message says why.

    Attributes:
        may_arrive: the transform may become available, so waiting helps.
        no_camera_frame: the name of the camera's frame is not known yet.
    """

    def __init__(self, message: str, *, may_arrive: bool, no_camera_frame: bool = False) -> None:
        super().__init__(message)
        self.may_arrive, self.no_camera_frame = may_arrive, no_camera_frame


class TransformSource(Protocol):
    """What the node needs of TF."""

    def lookup(self, target: str, source: str, stamp_ns: int | None) -> tuple[np.ndarray, int]:
        """Returns the transform between two frames.

        Args:
            target, source: frame ids.
            stamp_ns: time; None = the newest time at which all transforms of the chain are known.

        Returns:
            (target_from_source (4, 4) float64, its stamp in nanoseconds; 0 if the whole chain is static).

        Raises:
            TransformUnavailableError: a frame is unknown, or a transform is not known at that time.
        """
        ...

    def discard_after(self, stamp_ns: int) -> None:
        """Removes later transforms, except static ones, after time jumped back to `stamp_ns`."""
        ...

    def close(self) -> None:
        """Stops listening."""
        ...


class TransformBuffer:
    """A tree of frames over time that interpolates between samples. Safe to use from several threads.

    Args:
        cache_time: seconds that samples are kept.
    """

    def __init__(self, cache_time: float = 10.0) -> None:
        self._cache_ns = int(cache_time * 1e9)
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
        """Inserts `parent_from_child`. Invalid transforms (not finite, no rotation, no frame id) are ignored.

        Returns:
            True if time jumped back, so that the older samples of this frame were removed.
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
            jumped_back = bool(stamps) and stamp_ns < stamps[-1] - TIME_JUMP_NS
            if jumped_back:
                stamps.clear()
                samples.clear()
            index = bisect.bisect_left(stamps, stamp_ns)
            if index < len(stamps) and stamps[index] == stamp_ns:
                samples[index] = sample
            else:
                stamps.insert(index, stamp_ns)
                samples.insert(index, sample)
            expired = bisect.bisect_left(stamps, stamps[-1] - self._cache_ns)
            if expired > MIN_EXPIRED:
                del stamps[:expired], samples[:expired]
            return jumped_back

    def lookup(self, target: str, source: str, stamp_ns: int | None) -> tuple[np.ndarray, int]:
        """See `TransformSource.lookup`."""
        target, source = target.lstrip("/"), source.lstrip("/")
        with self._lock:
            source_chain, target_chain = self._chain(source), self._chain(target)
            common = next((frame for frame in source_chain if frame in target_chain), None)
            if common is None:
                raise TransformUnavailableError(self._not_connected_message(target, source), may_arrive=True)
            source_links = source_chain[: source_chain.index(common)]
            target_links = target_chain[: target_chain.index(common)]
            dynamic = [frame for frame in source_links + target_links if frame not in self._static]
            if stamp_ns is None:
                stamp_ns = min((self._stamps[frame][-1] for frame in dynamic), default=0)
            common_from_source = self._compose(source_links, stamp_ns)
            common_from_target = self._compose(target_links, stamp_ns)
            return invert_pose(common_from_target) @ common_from_source, stamp_ns

    def discard_after(self, stamp_ns: int) -> None:
        """See `TransformSource.discard_after`."""
        with self._lock:
            for child in list(self._stamps):
                count = bisect.bisect_right(self._stamps[child], stamp_ns + TIME_JUMP_NS)
                del self._stamps[child][count:], self._samples[child][count:]
                if not count:
                    del self._stamps[child], self._samples[child]
                    if child not in self._static:
                        self._parent.pop(child, None)

    def close(self) -> None:
        """See `TransformSource.close`. This class has no subscriptions."""

    def frames(self) -> list[str]:
        """Ids of all frames, sorted."""
        with self._lock:
            return self._frames()

    def sample_count(self, child: str) -> int:
        """Number of samples that are kept of a frame's transform to its parent."""
        with self._lock:
            return len(self._stamps.get(child, ()))

    def _frames(self) -> list[str]:
        return sorted(set(self._parent) | set(self._parent.values()))

    def _chain(self, frame: str) -> list[str]:
        """The frame and its ancestors."""
        chain = [frame]
        while chain[-1] in self._parent and len(chain) < MAX_CHAIN:
            chain.append(self._parent[chain[-1]])
        return chain

    def _compose(self, links: list[str], stamp_ns: int) -> np.ndarray:
        """Product of the transforms of `links`, ordered from the leaf to the common frame."""
        pose = np.eye(4)
        for child in links:
            pose = self._interpolate(child, stamp_ns) @ pose
        return pose

    def _interpolate(self, child: str, stamp_ns: int) -> np.ndarray:
        """parent_from_child at a time, between the two nearest samples."""
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
                f"The transform {name} is {late:.3f} s too old for stamp {stamp_ns / 1e9:.3f}. Check that its "
                "publisher runs and that all nodes have the same use_sim_time.",
                may_arrive=True,
            )
        if after == 0:
            early = (stamps[0] - stamp_ns) / 1e9
            raise TransformUnavailableError(
                f"The stamp {stamp_ns / 1e9:.3f} is {early:.3f} s older than all cached transforms {name}. Check the "
                "clock of the image's publisher, or increase `tf_cache_time`.",
                may_arrive=False,
            )
        fraction = (stamp_ns - stamps[after - 1]) / (stamps[after] - stamps[after - 1])
        return transform_from_pq(pq_slerp(samples[after - 1], samples[after], fraction))

    def _not_connected_message(self, target: str, source: str) -> str:
        frames = self._frames()
        if not frames:
            return f"No transform received, so {target} <- {source} is unknown. Check that /tf is published."
        missing = [frame for frame in (target, source) if frame not in frames]
        listed = ", ".join(frames[:MAX_LISTED_FRAMES]) + (" ..." if len(frames) > MAX_LISTED_FRAMES else "")
        if missing:
            return f"TF has no frame '{missing[0]}', so {target} <- {source} is unknown. Known frames: {listed}."
        return f"TF has no connection between '{target}' and '{source}'. Known frames: {listed}."


def open_transforms(node: Node, cache_time: float, on_time_jump: Callable[[], None]) -> TransformSource:
    """Subscribes to the transforms: by tf2_ros where it is installed, else by `TransformBuffer`.

    Args:
        node: node whose executor reads the topics.
        cache_time: seconds that transforms are kept.
        on_time_jump: called when time jumped back; not by tf2_ros, which handles jumps itself.
    """
    try:
        import tf2_ros  # noqa: F401
    except ImportError:
        return _TopicTransforms(node, cache_time, on_time_jump)
    return _Tf2Transforms(node, cache_time)


class _TopicTransforms(TransformBuffer):
    """A `TransformBuffer` that subscribes to /tf and /tf_static."""

    def __init__(self, node: Node, cache_time: float, on_time_jump: Callable[[], None]) -> None:
        super().__init__(cache_time)
        self._on_time_jump = on_time_jump
        self._node = node
        self._subscriptions = [
            node.create_subscription(TFMessage, "/tf", lambda message: self._on_tf(message, False), qos.TF),
            node.create_subscription(
                TFMessage, "/tf_static", lambda message: self._on_tf(message, True), qos.TF_STATIC
            ),
        ]

    def _on_tf(self, message: TFMessage, static: bool) -> None:
        jumped_back = False
        for item in message.transforms:
            translation, rotation = item.transform.translation, item.transform.rotation
            jumped_back |= self.insert(
                item.header.frame_id,
                item.child_frame_id,
                (translation.x, translation.y, translation.z),
                (rotation.w, rotation.x, rotation.y, rotation.z),
                messages.nanoseconds(item.header.stamp),
                static=static,
            )
        if jumped_back:
            self._on_time_jump()

    def close(self) -> None:
        """See `TransformSource.close`."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions = []


class _Tf2Transforms:
    """The buffer of tf2_ros."""

    def __init__(self, node: Node, cache_time: float) -> None:
        import tf2_ros

        self._tf2 = tf2_ros
        self._buffer = tf2_ros.Buffer(cache_time=Duration(seconds=cache_time), node=node)
        self._listener = tf2_ros.TransformListener(self._buffer, node)

    def lookup(self, target: str, source: str, stamp_ns: int | None) -> tuple[np.ndarray, int]:
        """See `TransformSource.lookup`."""
        try:
            found = self._buffer.lookup_transform(target, source, Time(nanoseconds=stamp_ns or 0))
        except self._tf2.TransformException as error:
            in_past = "past" in str(error)
            raise TransformUnavailableError(
                f"TF has no transform {target} <- {source}: {error}", may_arrive=not in_past
            ) from error
        translation, rotation = found.transform.translation, found.transform.rotation
        quaternion_wxyz = (rotation.w, rotation.x, rotation.y, rotation.z)
        matrix = transform_from_pq([translation.x, translation.y, translation.z, *quaternion_wxyz])
        return matrix, messages.nanoseconds(found.header.stamp)

    def discard_after(self, stamp_ns: int) -> None:
        """See `TransformSource.discard_after`. All is removed: tf2 ignores samples older than those it has."""
        self._buffer.clear()

    def close(self) -> None:
        """See `TransformSource.close`."""
        self._listener.unregister()
