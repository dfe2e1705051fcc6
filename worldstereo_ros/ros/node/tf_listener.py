"""Subscribes to /tf and /tf_static: by tf2_ros where it is installed, else with `TransformBuffer`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from pytransform3d.transformations import transform_from_pq
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.time import Time
from tf2_msgs.msg import TFMessage

from worldstereo_ros.ros.conversions import messages, qos
from worldstereo_ros.ros.node.tf_buffer import (
    MAX_NAME_LENGTH,
    TransformBuffer,
    TransformSource,
    TransformUnavailableError,
)


def open_transforms(
    node: Node,
    cache_time: float,
    on_time_jump: Callable[[], None],
    warn: Callable[[str, str], None] = lambda text, key: None,
) -> TransformSource:
    """Subscribes to the transforms: by tf2_ros where it is installed, else by `TransformBuffer`.

    Args:
        node: node whose executor reads the topics.
        cache_time: seconds that transforms are kept.
        on_time_jump: called when time jumped back; not by tf2_ros, which handles jumps itself.
        warn: logs (text, key), sparingly for each key: transforms that are ignored, and frames that change their
            parent. tf2_ros logs such itself.
    """
    try:
        import tf2_ros  # noqa: F401
    except ImportError:
        return TopicTransforms(node, cache_time, on_time_jump, warn)
    return _Tf2Transforms(node, cache_time)


class TopicTransforms(TransformBuffer):
    """A `TransformBuffer` that subscribes to /tf and /tf_static. The arguments are those of `open_transforms`.

    Attributes:
        ignored: number of transforms that were invalid, or too many.
    """

    def __init__(
        self, node: Node, cache_time: float, on_time_jump: Callable[[], None], warn: Callable[[str, str], None]
    ) -> None:
        super().__init__(cache_time)
        self._on_time_jump, self._warn = on_time_jump, warn
        self._node = node
        self.ignored = 0
        self._subscriptions = [
            node.create_subscription(TFMessage, "/tf", lambda message: self.on_tf(message, static=False), qos.TF),
            node.create_subscription(
                TFMessage, "/tf_static", lambda message: self.on_tf(message, static=True), qos.TF_STATIC
            ),
        ]

    def on_tf(self, message: TFMessage, *, static: bool) -> None:
        """Inserts the transforms of a message. One that is invalid is left out, counted and said; the others count."""
        jumped_back = False
        for item in message.transforms:
            translation, rotation = item.transform.translation, item.transform.rotation
            inserted = self.insert(
                item.header.frame_id,
                item.child_frame_id,
                (translation.x, translation.y, translation.z),
                (rotation.w, rotation.x, rotation.y, rotation.z),
                messages.nanoseconds(item.header.stamp),
                static=static,
            )
            jumped_back |= inserted.jumped_back
            frames = f"{item.header.frame_id[:MAX_NAME_LENGTH]} <- {item.child_frame_id[:MAX_NAME_LENGTH]}"
            if inserted.refused:
                self.ignored += 1
                self._warn(
                    f"Ignored the transform {frames}. {inserted.refused} ({self.ignored} ignored so far.)",
                    "tf ignored",
                )
            elif inserted.old_parent:
                self._warn(
                    f"The frame '{item.child_frame_id}' was in '{inserted.old_parent}' and is now in "
                    f"'{item.header.frame_id}'. If it goes back and forth, two nodes publish it; stop one of them.",
                    "tf parent",
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
