"""The node's inputs: subscriptions, and the way of an image from its message to the worker's mailbox.

image, compressed ─► checked ─► joined with camera_info and depth ─► given its pose ─► mailbox
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from worldstereo_ros.geometry.calibration import calibration_from_info
from worldstereo_ros.imaging.codecs import COLOUR_ENCODINGS, DEPTH_ENCODINGS
from worldstereo_ros.ros.conversions import messages, qos
from worldstereo_ros.ros.node.diagnostics import NodeDiagnostics
from worldstereo_ros.ros.node.parameters import NodeParameters
from worldstereo_ros.ros.node.pose_resolver import PoseResolver
from worldstereo_ros.ros.node.synchronizer import KEPT, Observation, SyncedFrame, Synchronizer, check_sizes
from worldstereo_ros.ros.node.tf_buffer import SET_BACK_NS, TransformUnavailableError
from worldstereo_ros.utils.errors import InputError

INPUTS = (
    # name, type, profile, what
    ("image", Image, qos.SENSOR, "what the camera sees: " + ", ".join(COLOUR_ENCODINGS)),
    ("image/compressed", CompressedImage, qos.SENSOR, "the same as JPEG or PNG"),
    ("camera_info", CameraInfo, qos.SENSOR, "the camera's calibration; distortion is taken out"),
    ("depth", Image, qos.SENSOR, "registered to the image: 16UC1 millimetres or 32FC1 metres; optional"),
    ("panorama", Image, qos.SENSOR, "equirectangular image; seeds many views at once"),
    ("pose", PoseStamped, qos.COMMAND, "where the seed was taken, where TF gives nothing"),
)


class Subscriptions:
    """Subscribes while the node is active and hands seeds on."""

    def __init__(
        self,
        node: Node,
        settings: NodeParameters,
        frames: PoseResolver,
        health: NodeDiagnostics,
        offer: Callable[[Observation], None],
        guarded: Callable[[str, Callable], Callable],
    ) -> None:
        self._node, self._frames, self._health, self._offer = node, frames, health, offer
        self._joiner = Synchronizer()
        self._waiting: deque[SyncedFrame] = deque()
        self._poses: deque[tuple[int, np.ndarray]] = deque(maxlen=4 * KEPT)
        self._newest: dict[str, int] = {}
        self._last_seed_at = -1e9
        self._last_seed: tuple[str, int] | None = None  # frame and stamp
        self._started_at = time.monotonic()
        self._quiet_said_at = -1e9
        self.gave_up = 0
        self.apply(settings)
        takers = {
            "image": self._take_image,
            "image/compressed": self._take_image,
            "camera_info": self._take_info,
            "depth": self._take_depth,
            "panorama": self._take_panorama,
            "pose": self._take_pose,
        }
        self._subscriptions = []
        for name, kind, profile, _ in INPUTS:
            subscription = node.create_subscription(
                kind,
                name,
                guarded(name, lambda message, name=name: self._take(name, takers[name], message)),
                profile,
                qos_overriding_options=QoSOverridingOptions.with_default_policies(),
            )
            self._subscriptions.append(subscription)
        self.topics = {
            name: subscription.topic_name for (name, *_), subscription in zip(INPUTS, self._subscriptions, strict=True)
        }

    def apply(self, settings: NodeParameters) -> None:
        """Takes up parameters."""
        self._settings = settings
        self._joiner.tolerance_ns = int(settings.sync_tolerance * 1e9)
        self._joiner.wait = settings.sync_timeout
        # A guess stands in for a sensor that is not there, not for one that lost a frame, unless that was asked for.
        depth = {"sensor": "needed", "model": "ignored", "auto": "wanted" if settings.depth_model else "tried"}
        self._joiner.depth = depth[settings.depth_source]

    def close(self) -> None:
        """Stops listening."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions = []
        self.clear()

    def clear(self) -> None:
        """Forgets all that waits: time jumped, or the node was deactivated."""
        self._joiner.clear()
        self._waiting.clear()
        self._poses.clear()
        self._newest.clear()

    # --- what comes -----------------------------------------------------------------------------------------------

    def _take(self, name: str, taker: Callable, message) -> None:
        self._health.on_message(name)
        try:
            self._watch_time(name, messages.nanoseconds(message.header.stamp))
            taker(name, message)
        except (ValueError, TransformUnavailableError) as error:  # ImageError is a ValueError
            self._health.on_rejected(name, str(error))
        self.tick()

    def _watch_time(self, name: str, stamp_ns: int) -> None:
        """A stamp far before the last one means that a recording starts over."""
        newest = self._newest.get(name, 0)
        if stamp_ns and stamp_ns < newest - SET_BACK_NS:
            self._health.warn(
                f"{name}: its stamps went back by {(newest - stamp_ns) / 1e9:.1f} s (a recording that starts over, or "
                "two publishers with different clocks); what waited for its partner is forgotten, the memories stay.",
                key="time",
            )
            self.time_went_back(stamp_ns)
        self._newest[name] = stamp_ns

    def time_went_back(self, stamp_ns: int) -> None:
        """Starts over with what is kept by stamp."""
        self._joiner.forget_after(stamp_ns)
        self._waiting.clear()
        self._poses = deque((entry for entry in self._poses if entry[0] <= stamp_ns + SET_BACK_NS), maxlen=4 * KEPT)
        self._newest.clear()
        self._frames.time_went_back(stamp_ns)

    def _take_image(self, name: str, message: Image | CompressedImage) -> None:
        if isinstance(message, Image):
            messages.check_image(message, COLOUR_ENCODINGS, self._settings.max_image_pixels)
        elif not len(message.data):
            raise InputError("The compressed image has no data.")
        self._require_frame(message)
        given_up = self._joiner.add_image(message, name, time.monotonic())
        if given_up is not None:
            self.gave_up += 1

    def _take_info(self, name: str, message: CameraInfo) -> None:
        calibration_from_info(message)
        self._joiner.add_info(message)

    def _take_depth(self, name: str, message: Image) -> None:
        messages.check_image(message, DEPTH_ENCODINGS, self._settings.max_image_pixels)
        self._joiner.add_depth(message)

    def _take_panorama(self, name: str, message: Image) -> None:
        messages.check_image(message, COLOUR_ENCODINGS, self._settings.max_image_pixels)
        self._require_frame(message)
        stamp_ns = messages.nanoseconds(message.header.stamp)
        self._waiting.append(SyncedFrame(message, None, None, name, stamp_ns, time.monotonic()))

    def _take_pose(self, name: str, message: PoseStamped) -> None:
        pose = self._frames.world_from(message.header.frame_id, None) @ messages.pose_matrix(message.pose)
        self._poses.append((messages.nanoseconds(message.header.stamp), pose))

    def _require_frame(self, message: Image | CompressedImage) -> None:
        frame = self._settings.camera_frame or message.header.frame_id
        if not frame and self._settings.pose_source in ("auto", "tf"):
            raise InputError(
                "The image's header names no frame, so TF cannot say where it was taken. Set frame_id in its "
                "publisher, or the parameter `camera_frame`."
            )

    # --- from images to seeds -------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Hands on what is complete and gives up what waited too long; called often."""
        now = time.monotonic()
        done, given_up = self._joiner.joined(now)
        for item, sentence in given_up:
            self._health.on_rejected(item.topic, sentence)
        self._waiting.extend(done)
        while len(self._waiting) > KEPT:
            self._waiting.popleft()
            self.gave_up += 1
        for item in list(self._waiting):
            try:
                self._dispatch(item, now)
            except TransformUnavailableError as error:
                if error.may_come and now - item.since < self._joiner.wait + self._settings.tf_timeout:
                    continue
                self._health.on_rejected(item.topic, f"The place it was taken from is not known. {error}")
            except ValueError as error:
                self._health.on_rejected(item.topic, str(error))
            self._waiting.remove(item)

    def _dispatch(self, item: SyncedFrame, now: float) -> None:
        if item.info is not None and isinstance(item.image, Image):
            check_sizes(calibration_from_info(item.info).camera, item.image.width, item.image.height)
        if now - self._last_seed_at < self._settings.min_observation_period:
            return
        what = (item.image.header.frame_id, item.stamp_ns)
        if item.stamp_ns and what == self._last_seed:
            return  # a driver that publishes raw and compressed sends each picture twice
        pose = self._pose_of(item)
        self._last_seed = what
        self._last_seed_at = now
        # Only now: a frame that TF does not know must not take the place of one that it does.
        self._frames.seen_camera_frame = self._settings.camera_frame or item.image.header.frame_id
        needs_depth = self._joiner.depth in ("needed", "tried")
        self._offer(Observation(item.image, item.info, item.depth, pose, item.stamp_ns, item.topic, needs_depth))

    def _pose_of(self, item: SyncedFrame) -> np.ndarray:
        """world_from_camera of an image. Raises TransformMissing."""
        source = self._settings.pose_source
        frame = self._settings.camera_frame or item.image.header.frame_id
        if source == "fixed":
            return self._frames.base_from_camera(frame)
        missing: TransformUnavailableError | None = None
        if source in ("tf", "auto"):
            try:
                # A publisher that leaves the stamp empty means now.
                return self._frames.world_from_camera(frame, item.stamp_ns or None)
            except TransformUnavailableError as error:
                missing = error
        if source in ("topic", "auto") and self._poses:
            stamp, pose = min(self._poses, key=lambda entry: abs(entry[0] - item.stamp_ns))
            if abs(stamp - item.stamp_ns) <= self._joiner.tolerance_ns:
                return self._frames.camera_pose(pose, frame)
            gap = abs(stamp - item.stamp_ns) / 1e9
            missing = missing or TransformUnavailableError(f"The nearest pose is {gap:.3f} s off.", may_come=True)
        raise missing or TransformUnavailableError("No pose has come.", may_come=True)

    # --- nothing comes --------------------------------------------------------------------------------------------

    def say_if_quiet(self) -> None:
        """Names the topics, and who publishes on them, when no image has come for a while."""
        now, after = time.monotonic(), self._settings.no_input_warning_period
        times = [self._health.last_at(name) for name in ("image", "image/compressed", "panorama")]
        last = max((t for t in times if t is not None), default=self._started_at)
        if now - max(last, self._started_at) < after or now - self._quiet_said_at < max(after, 30.0):
            return
        self._quiet_said_at = now
        publishers = {name: self._node.count_publishers(topic) for name, topic in self.topics.items()}
        listed = ", ".join(f"{self.topics[name]} ({count} publishers)" for name, count in publishers.items())
        hint = "remap them to your camera's (-r image:=/camera/color/image_raw ...)"
        if publishers["image"] or publishers["image/compressed"] or publishers["panorama"]:
            hint = "the publishers are there but send nothing (ros2 topic hz), or their QoS does not match"
        self._health.warn(f"No image for {after:g} s. Listening on {listed}; {hint}.", key="quiet")
