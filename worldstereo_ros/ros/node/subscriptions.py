"""The node's inputs: subscriptions, and the way of an image from its message to the worker's mailbox.

image, image/compressed ─► checked ─► matched with camera_info and depth ─► pose looked up ─► mailbox

Photographs without poses take another way (`photographs.py`).
"""

from __future__ import annotations

import copy
import time
from collections import deque
from collections.abc import Callable

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from worldstereo_ros.geometry.calibration import calibration_from_info, is_rectified
from worldstereo_ros.geometry.depth_units import parse_depth_unit
from worldstereo_ros.imaging.codecs import COLOUR_ENCODINGS
from worldstereo_ros.ros.conversions import messages, qos
from worldstereo_ros.ros.node.camera_log import CameraLog
from worldstereo_ros.ros.node.diagnostics import NodeDiagnostics
from worldstereo_ros.ros.node.parameters import NodeParameters
from worldstereo_ros.ros.node.photographs import PHOTOGRAPH_TOPICS, PhotographInput
from worldstereo_ros.ros.node.pose_resolver import PoseResolver
from worldstereo_ros.ros.node.synchronizer import (
    MAX_PENDING,
    Observation,
    SyncedFrame,
    Synchronizer,
    check_depth_size,
    check_sizes,
)
from worldstereo_ros.ros.node.tf_buffer import TIME_JUMP_NS, TransformUnavailableError
from worldstereo_ros.utils.errors import InputError

INPUTS = (
    # name, type, profile, description
    ("image", Image, qos.SENSOR, "camera image: " + ", ".join(COLOUR_ENCODINGS)),
    ("image/compressed", CompressedImage, qos.SENSOR, "camera image as JPEG or PNG"),
    ("camera_info", CameraInfo, qos.SENSOR, "calibration: images are undistorted with K, or seen with P (`rectified`)"),
    ("depth", Image, qos.SENSOR, "depth of each pixel of the image: 16UC1 mm or 32FC1 m (`depth_unit`); optional"),
    ("panorama", Image, qos.SENSOR, "equirectangular image, split into several views"),
    ("pose", PoseStamped, qos.COMMAND, "pose of each image where TF has none"),
    ("photograph", Image, qos.SENSOR, "photograph without a pose, of any camera and time: placed by what it shows"),
    ("photograph/compressed", CompressedImage, qos.SENSOR, "photograph as JPEG or PNG"),
    ("photograph/camera_info", CameraInfo, qos.SENSOR, "calibration of the photographs"),
)
MAX_POSES = 4 * MAX_PENDING  # of the topic `pose` that are kept; the newest
MIN_WARNING_PERIOD_S = 30.0  # between two warnings that no image has arrived yet; doubled after each one


class Subscriptions:
    """Subscribes to the inputs from its construction to `close` and offers observations to the worker.

    Args:
        node: node on which the subscriptions are created.
        parameters: parameters of the node.
        pose_resolver: looks up the pose of each image.
        diagnostics: counts messages and rejections.
        offer: takes a complete observation.
        guarded: (name, callback) -> a callback that reports exceptions instead of raising them.
        on_matched: takes (image with its camera_info and depth, whether its pose is known) of each image, whatever
            `min_observation_period`; where poses do not arrive, without waiting for them.
        placed_by_pointmaps: returns whether the memories hold views whose poses point maps estimated.

    Attributes:
        topics: resolved topic by the name of the input.
        dropped: number of images dropped because too many waited.
    """

    def __init__(
        self,
        node: Node,
        parameters: NodeParameters,
        pose_resolver: PoseResolver,
        diagnostics: NodeDiagnostics,
        offer: Callable[[Observation], None],
        guarded: Callable[[str, Callable], Callable],
        on_matched: Callable[[Observation, bool], None] | None = None,
        placed_by_pointmaps: Callable[[], bool] = lambda: False,
    ) -> None:
        self._node, self._pose_resolver, self._diagnostics, self._offer = node, pose_resolver, diagnostics, offer
        self._on_matched, self._placed_by_pointmaps = on_matched, placed_by_pointmaps
        self._poses_arrive = False  # of the images, so that they are worth waiting for
        self._synchronizer = Synchronizer()
        self._synced: deque[SyncedFrame] = deque()  # frames that wait for their pose
        self._poses: deque[tuple[int, np.ndarray]] = deque(maxlen=MAX_POSES)
        self._newest_stamps: dict[str, int] = {}
        self._last_observation_at = -1e9
        self._last_observation: tuple[str, int] | None = None  # frame_id and stamp
        self._own_topics = {publisher.topic_name for publisher in node.publishers}
        self._started_at = time.monotonic()
        self._warned_at = -1e9
        self._next_warning_s = MIN_WARNING_PERIOD_S
        self._warned_last: float | None = None  # time of the last image when the newest warning was logged
        self.dropped = 0
        self.topics: dict[str, str] = {}
        self._camera_log = CameraLog(lambda text: node.get_logger().info(text), diagnostics, self.topics)
        self._photographs = PhotographInput(diagnostics, offer, self.topics)
        self.apply(parameters)
        handlers = {
            "image": self._on_image,
            "image/compressed": self._on_image,
            "camera_info": self._on_info,
            "depth": self._on_depth,
            "panorama": self._on_panorama,
            "pose": self._on_pose,
            "photograph": self._photographs.on_image,
            "photograph/compressed": self._photographs.on_image,
            "photograph/camera_info": self._photographs.on_info,
        }
        self._subscriptions = []
        for name, kind, profile, _ in INPUTS:
            subscription = node.create_subscription(
                kind,
                name,
                guarded(name, lambda message, name=name: self._on_message(name, handlers[name], message)),
                copy.copy(profile),  # rclpy writes the overrides of one topic into it, and others share it
                qos_overriding_options=QoSOverridingOptions.with_default_policies(),
            )
            self._subscriptions.append(subscription)
        self.topics.update(
            (name, subscription.topic_name)
            for (name, *_), subscription in zip(INPUTS, self._subscriptions, strict=True)
        )

    def apply(self, parameters: NodeParameters) -> None:
        """Applies new parameters."""
        self._parameters = parameters
        self._photographs.apply(parameters)
        self._synchronizer.tolerance_ns = int(parameters.sync_tolerance * 1e9)
        self._synchronizer.timeout = parameters.sync_timeout
        # By default, estimated depth replaces a sensor that is absent, but not single frames that a sensor lost.
        self._depth_unit = parse_depth_unit(parameters.depth_unit)
        auto = "optional" if parameters.depth_model else "auto"
        policies = {"sensor": "required", "model": "ignored", "pointmaps": "ignored", "auto": auto}
        self._synchronizer.depth_policy = policies[parameters.depth_source]

    def close(self) -> None:
        """Unsubscribes and drops all waiting messages."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions = []
        self._synchronizer.clear()
        self._photographs.clear()
        self._synced.clear()
        self._poses.clear()
        self._newest_stamps.clear()

    def drop_images(self) -> None:
        """Drops the images that wait for depth or a pose: of before a reset, they must not come after it."""
        self._synchronizer.drop_images()
        self._photographs.drop_images()
        self._synced.clear()

    # --- messages ---

    def _on_message(self, name: str, handler: Callable, message) -> None:
        self._diagnostics.on_message(name)
        try:
            if name != "pose":
                self._reject_own_output(name, message.header.frame_id)
            # Photographs come in any order, and so do images where each has a message with its pose.
            if name not in PHOTOGRAPH_TOPICS and self._parameters.pose_source not in ("topic", "fixed"):
                self._check_time(name, messages.nanoseconds(message.header.stamp))
            handler(name, message)
        except (ValueError, TransformUnavailableError) as error:  # ImageError is a ValueError
            self._diagnostics.on_rejected(name, str(error))
        self.process_pending()

    def _reject_own_output(self, name: str, frame_id: str) -> None:
        """Raises InputError for the node's own output: what it imagined must not come back as observed."""
        if self.topics[name] in self._own_topics:
            raise InputError(
                f"The input is remapped to {self.topics[name]}, which this node publishes: what it imagined would be "
                "remembered as observed. Remap it to the topic of the camera."
            )
        imagined_frame = self._parameters.imagined_frame
        if frame_id.lstrip("/") == imagined_frame.lstrip("/"):
            raise InputError(
                f"The message has frame_id '{frame_id}', the frame of imagined views (parameter `imagined_frame`): "
                "what was imagined would be remembered as observed. Remap the input to the topic of the camera."
            )

    def _check_time(self, name: str, stamp_ns: int) -> None:
        """Detects a jump back in time, as of a recording that starts over."""
        newest = self._newest_stamps.get(name, 0)
        if stamp_ns and stamp_ns < newest - TIME_JUMP_NS:
            self._diagnostics.warn(
                f"{name}: stamps jumped back by {(newest - stamp_ns) / 1e9:.1f} s (a recording started over, or two "
                "publishers have different clocks). Dropped the waiting messages; the memories are kept.",
                key="time",
            )
            self.on_time_jump(stamp_ns)
        self._newest_stamps[name] = stamp_ns

    def on_time_jump(self, stamp_ns: int) -> None:
        """Drops waiting messages with later stamps, after time jumped back to `stamp_ns`."""
        self._synchronizer.discard_after(stamp_ns)
        self._synced.clear()
        self._poses = deque((entry for entry in self._poses if entry[0] <= stamp_ns + TIME_JUMP_NS), maxlen=MAX_POSES)
        self._newest_stamps.clear()
        self._pose_resolver.on_time_jump(stamp_ns)

    def _on_image(self, name: str, message: Image | CompressedImage) -> None:
        if isinstance(message, Image):
            messages.check_image(message, self._parameters.max_image_pixels)
        else:
            messages.check_compressed_image(message, self._parameters.max_image_pixels)
        self._require_frame(message)
        if self._synchronizer.add_image(message, name, time.monotonic()) is not None:
            self.dropped += 1

    def _on_info(self, name: str, message: CameraInfo) -> None:
        # Usable for one of the image topics: raw images need K, rectified ones P.
        rectified = sorted({self._is_rectified(topic) for topic in ("image", "image/compressed")})
        for index, setting in enumerate(rectified):
            try:
                calibration_from_info(message, rectified=setting)
                break
            except InputError:
                if index + 1 == len(rectified):
                    raise
        self._synchronizer.add_info(message)

    def _on_depth(self, name: str, message: Image) -> None:
        messages.check_image(message, self._parameters.max_image_pixels, depth=True)
        self._synchronizer.add_depth(message)

    def _on_panorama(self, name: str, message: Image) -> None:
        messages.check_image(message, self._parameters.max_image_pixels)
        self._require_frame(message)
        stamp_ns = messages.nanoseconds(message.header.stamp)
        self._synced.append(SyncedFrame(message, None, None, name, stamp_ns, time.monotonic()))

    def _on_pose(self, name: str, message: PoseStamped) -> None:
        world_from_frame = self._pose_resolver.world_from(message.header.frame_id, None)
        pose = world_from_frame @ messages.pose_matrix(message.pose)
        self._poses.append((messages.nanoseconds(message.header.stamp), pose))

    def _is_rectified(self, name: str) -> bool:
        return is_rectified(self._parameters.rectified, self.topics[name])

    def _frame_of(self, message: Image | CompressedImage) -> str:
        return self._parameters.camera_frame or message.header.frame_id

    def _require_frame(self, message: Image | CompressedImage) -> None:
        if not self._frame_of(message) and self._parameters.pose_source in ("auto", "tf"):
            raise InputError(
                "The image has no frame_id, so its pose cannot be looked up in TF. Set frame_id in its publisher, or "
                "the parameter `camera_frame`."
            )

    # --- from images to observations ---

    def process_pending(self) -> None:
        """Offers complete images and rejects those that timed out. Called after each message and by a timer."""
        now = time.monotonic()
        self._photographs.process_pending(now)
        ready, rejected = self._synchronizer.pop_ready(now)
        for frame, reason in rejected:
            self._diagnostics.on_rejected(frame.topic, reason)
        if self._on_matched is not None and not self._poses_arrive:
            for frame in ready:
                frame.handed_on = True
                self._on_matched(self._observation(frame, np.eye(4)), False)
        if self._parameters.pose_source == "pointmaps":  # which gets every image, and offers those that it places
            ready = [frame for frame in ready if not frame.handed_on]
        self._synced.extend(ready)
        while len(self._synced) > MAX_PENDING:
            self._synced.popleft()
            self.dropped += 1
        timeout = self._synchronizer.timeout + self._parameters.tf_timeout
        for frame in list(self._synced):
            try:
                self._dispatch(frame, now)
            except TransformUnavailableError as error:
                if error.may_arrive and now - frame.received_at < timeout:
                    continue
                self._poses_arrive = False
                if self._parameters.pointmaps.enabled and self._parameters.pose_source == "auto" and frame.handed_on:
                    self._synced.remove(frame)  # point maps place it, if poses never arrive
                    continue
                self._diagnostics.on_rejected(frame.topic, f"The pose of the image is unknown. {error}")
            except ValueError as error:
                self._diagnostics.on_rejected(frame.topic, str(error))
            self._synced.remove(frame)

    def _dispatch(self, frame: SyncedFrame, now: float) -> None:
        rectified = frame.info is not None and self._is_rectified(frame.topic)
        if frame.info is not None:
            calibration = calibration_from_info(frame.info, rectified=rectified)
            if isinstance(frame.image, Image):
                check_sizes(calibration.camera, frame.image.width, frame.image.height)
            if frame.depth is not None:
                check_depth_size(calibration.camera, frame.depth.width, frame.depth.height)
            self._camera_log.on_frame(frame, calibration, rectified)
        if self._on_matched is not None and frame.info is not None:
            pose = self._pose_of(frame)
            self._poses_arrive = True
            if not frame.handed_on:
                frame.handed_on = True
                self._on_matched(self._observation(frame, pose), True)
        if self._parameters.depth_source == "pointmaps" and frame.info is not None:
            return  # point maps offer it with their depth
        if now - self._last_observation_at < self._parameters.min_observation_period:
            return
        frame_and_stamp = (frame.image.header.frame_id, frame.stamp_ns)
        if frame.stamp_ns and frame_and_stamp == self._last_observation:
            return  # a driver that publishes raw and compressed images sends each one twice
        pose = self._pose_of(frame)
        if self._placed_by_pointmaps():
            raise InputError(
                "The image has a pose of TF or a topic, and the memories hold views that point maps placed, in a frame "
                "of their own: the two are not mixed. Call ~/reset to continue with the poses that arrive now."
            )
        self._last_observation = frame_and_stamp
        self._last_observation_at = now
        # Only after the lookup: a frame that TF does not know must not replace one that it knows.
        self._pose_resolver.image_frame = self._frame_of(frame.image)
        self._offer(self._observation(frame, pose))

    def _observation(self, frame: SyncedFrame, world_from_camera: np.ndarray) -> Observation:
        return Observation(
            frame.image,
            frame.info,
            frame.depth,
            world_from_camera,
            frame.stamp_ns,
            frame.topic,
            needs_depth=self._synchronizer.depth_policy in ("required", "auto"),
            rectified=frame.info is not None and self._is_rectified(frame.topic),
            depth_unit=self._depth_unit,
        )

    def _pose_of(self, frame: SyncedFrame) -> np.ndarray:
        """world_from_camera (4, 4) of an image. Raises TransformUnavailableError."""
        source = self._parameters.pose_source
        camera_frame = self._frame_of(frame.image)
        if source == "pointmaps":
            raise InputError(
                "The image has no pose: pose_source is pointmaps, which places images of a camera with camera_info, "
                "and no panorama. Set pose_source to tf or topic for it."
            )
        if source == "fixed":
            return self._pose_resolver.base_from_camera(camera_frame)
        reason: TransformUnavailableError | None = None
        if source in ("tf", "auto"):
            try:
                # Stamp 0 (not set by the publisher) means now.
                return self._pose_resolver.world_from_camera(camera_frame, frame.stamp_ns or None)
            except TransformUnavailableError as error:
                reason = error
        if source in ("topic", "auto") and self._poses:
            # Of two of one stamp the one that came last: a recording may have started over.
            stamp_ns, pose = min(reversed(self._poses), key=lambda entry: abs(entry[0] - frame.stamp_ns))
            gap_ns = abs(stamp_ns - frame.stamp_ns)
            if gap_ns <= self._synchronizer.tolerance_ns:
                return self._pose_resolver.camera_poses(pose, camera_frame)
            reason = reason or TransformUnavailableError(
                f"The nearest message of the topic pose is {gap_ns / 1e9:.3f} s off.", may_arrive=True
            )
        raise reason or TransformUnavailableError("No message of the topic pose received.", may_arrive=True)

    # --- missing input ---

    def warn_if_no_input(self) -> None:
        """Warns with the topics and their publishers if no image arrived for `no_input_warning_period` seconds.

        Once, when images stop; while none has arrived since the start, again and again, at growing intervals.
        """
        now, period = time.monotonic(), self._parameters.no_input_warning_period
        times = [self._diagnostics.last_at(name) for name in ("image", "image/compressed", "panorama")]
        last = max((t for t in times if t is not None), default=self._started_at)
        if now - max(last, self._started_at) < period:
            return
        if self._warned_last == last:  # an idle node is quiet: said once, and again only while none ever arrived
            if last != self._started_at or now - self._warned_at < max(period, self._next_warning_s):
                return
            self._next_warning_s *= 2
        elif now - self._warned_at < MIN_WARNING_PERIOD_S:
            return
        self._warned_at, self._warned_last = now, last
        topics = {name: topic for name, topic in self.topics.items() if name not in PHOTOGRAPH_TOPICS}
        publishers = {name: self._node.count_publishers(topic) for name, topic in topics.items()}
        listed = ", ".join(f"{topics[name]} ({count} publishers)" for name, count in publishers.items())
        hint = "Remap them to the topics of your camera (-r image:=/camera/color/image_raw ...)."
        if publishers["image"] or publishers["image/compressed"] or publishers["panorama"]:
            hint = "Publishers exist but send nothing (check with ros2 topic hz), or their QoS does not match."
        self._diagnostics.warn(f"No image for {period:g} s. Subscribed to {listed}. {hint}", key="no input")
