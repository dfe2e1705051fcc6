"""The topics `~/odometry` and `~/pointmaps/*`: the camera's path, depth and what moves, from its images alone.

    image, camera_info, depth ─► matched ─► queue ─► PointmapStream on a thread of its own ─► topics, memories
                                                          └─► PointmapLoops ─► TF, ~/pointmaps/path

It works beside the worker, which owns the memories, and offers it views where `pose_source` or `depth_source` is
pointmaps. Images are taken only then, or while one of the topics has subscribers.
"""

from __future__ import annotations

import copy
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from nav_msgs.msg import Odometry
from rclpy.lifecycle import LifecycleNode
from rclpy.qos_overriding_options import QoSOverridingOptions
from std_msgs.msg import Header

from worldstereo_ros.geometry.camera_axes import BODY_FROM_OPTICAL
from worldstereo_ros.geometry.views import View
from worldstereo_ros.pipelines.pointmaps.types import Pointmaps
from worldstereo_ros.pipelines.pointmaps.windows import PointmapStream
from worldstereo_ros.ros.conversions import messages, qos
from worldstereo_ros.ros.node.diagnostics import NodeDiagnostics
from worldstereo_ros.ros.node.parameters import NodeParameters
from worldstereo_ros.ros.node.pointmap_estimator import StreamFactory
from worldstereo_ros.ros.node.pointmap_loops import PointmapLoops
from worldstereo_ros.ros.node.pointmap_memory import MemoryFeed, PlacedObservation
from worldstereo_ros.ros.node.pointmap_parameters import feeds_memories, keeps_poses, remembered_depth
from worldstereo_ros.ros.node.pointmap_path import PathFrame, PointmapPath
from worldstereo_ros.ros.node.pointmap_publishers import WHEELS, PointmapPublishers
from worldstereo_ros.ros.node.pose_resolver import PoseResolver
from worldstereo_ros.ros.node.synchronizer import Observation
from worldstereo_ros.ros.node.tf_buffer import TransformUnavailableError
from worldstereo_ros.world import WorldModel

QUEUE = 32  # images that wait; the oldest is dropped
MAX_WHEEL_POSES = 2000
PATH_EVERY = 4  # parts after which the path of the keyframes is published, unless it was corrected before
STOP_TIMEOUT_S = 3.0


@dataclass(frozen=True)
class Frame:
    """An image in the queue.

    Attributes:
        observation: with its header, and the pose that TF or a topic gave it.
        posed: it has one.
    """

    observation: Observation
    posed: bool


class PointmapOutput:
    """Estimates point maps and publishes them, while the node is configured.

    `offer`, `on_wheels` and `restart` are called by the executor, everything else happens on its own thread.

    Args:
        node: node on which the publishers are created; they send while it is active.
        parameters: parameters of the node.
        pose_resolver: for the camera's place on the robot, and the frame that tells the scale.
        diagnostics: counts images that cannot be used.
        log: logs a line at level info.
        offer_observation: takes views for the memories.
        with_memories: runs a function of the world model on the worker's thread, before any waiting observation.
        guarded: (name, callback) -> a callback that reports exceptions instead of raising them.

    Attributes:
        names: names of the topics.
    """

    def __init__(
        self,
        node: LifecycleNode,
        parameters: NodeParameters,
        pose_resolver: PoseResolver,
        diagnostics: NodeDiagnostics,
        log: Callable[[str], object],
        offer_observation: Callable[[Observation], None],
        with_memories: Callable[[Callable[[WorldModel], None]], None],
        guarded: Callable[[str, Callable], Callable],
    ) -> None:
        self._with_memories = with_memories
        self._node, self._pose_resolver, self._diagnostics, self._log = node, pose_resolver, diagnostics, log
        self._publishers = PointmapPublishers(node)
        self._wheels = node.create_subscription(
            Odometry,
            WHEELS,
            guarded(WHEELS, self.on_wheels),
            copy.copy(qos.SENSOR),
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )
        self.names = self._publishers.names
        self._parameters = parameters
        self._feed = MemoryFeed(offer_observation, lambda text, key: diagnostics.warn(text, key=key))
        self._factory = StreamFactory()
        self._wheel_poses: deque[tuple[int, np.ndarray]] = deque(maxlen=MAX_WHEEL_POSES)
        self._wake = threading.Condition()
        self._queue: deque[Frame] = deque()
        self._restart = self._stopping = False
        self._dropped = self._done = self._lost = 0
        self._last_taken_at, self._last_frame = -1e9, ("", 0)
        self._clear()
        self._thread = threading.Thread(target=self._run, name="worldstereo_pointmaps", daemon=True)
        self._thread.start()

    def _clear(self) -> None:
        self._stream: PointmapStream | None = None
        self._stream_of: object = None
        self._streams = self._parts = 0
        self._given = self._posed_seen = False
        self._newest_stamp_ns = 0
        self._path: PointmapPath | None = None
        self._loops = self._new_loops()
        self._base_from_camera: np.ndarray | None = None
        self._waiting: deque[tuple[Frame, View]] = deque()
        self._publishers.restart()

    def apply(self, parameters: NodeParameters) -> None:
        """Applies new parameters from the next image on."""
        self._parameters = parameters

    def restart(self) -> None:
        """Begins anew, as after a reset of the memories: the path starts where the camera is next."""
        with self._wake:
            self._queue.clear()
            self._restart = True
            self._wake.notify()

    def close(self) -> bool:
        """Ends the thread and destroys the publishers. Returns False if the thread still works; it ends by itself."""
        with self._wake:
            self._stopping = True
            self._queue.clear()
            self._wake.notify()
        self._thread.join(STOP_TIMEOUT_S)
        self._node.destroy_subscription(self._wheels)
        self._publishers.close()
        return not self._thread.is_alive()

    @property
    def places_images(self) -> bool:
        """Whether the memories hold views whose poses are those of point maps, in a frame of their own."""
        return self._feed.placed

    @property
    def status(self) -> dict[str, object]:
        """Values for the diagnostics."""
        path = self._path
        scale = "none yet" if path is None else path.scale_from if path.metric else "a guess, not metres"
        return {
            "point maps": self._done,
            "point maps without a pose": self._lost,
            "point maps dropped": self._dropped,
            "point maps scale": scale,
            "point maps path broken": 0 if path is None else path.broken,
            **self._loops.status,
        }

    def _needed(self, posed: bool) -> bool:
        """Whether an image is to be estimated: for subscribers, the memories, or TF."""
        parameters = self._parameters
        if self._publishers.active and (feeds_memories(parameters, posed) or parameters.pointmaps.publish_tf):
            return True
        return bool(self._publishers.heard())

    # --- messages ---

    def on_wheels(self, message: Odometry) -> None:
        """Keeps a pose of the wheel odometry."""
        self._diagnostics.on_message(WHEELS)
        try:
            pose = messages.pose_matrix(message.pose.pose)
        except ValueError as error:
            self._diagnostics.on_rejected(WHEELS, str(error))
            return
        self._wheel_poses.append((messages.nanoseconds(message.header.stamp), pose))

    def offer(self, frame: Observation, posed: bool) -> None:
        """Takes the next image with its camera_info and depth, if it is needed.

        Args:
            frame: the image.
            posed: its pose is known.
        """
        now, rate = time.monotonic(), self._parameters.pointmaps.max_rate
        identity = (frame.image.header.frame_id, frame.stamp_ns)
        if (rate and now - self._last_taken_at < 1 / rate) or (frame.stamp_ns and identity == self._last_frame):
            return
        self._posed_seen = self._posed_seen or posed
        if not self._needed(posed):
            return
        self._last_frame, self._last_taken_at = identity, now
        with self._wake:
            if len(self._queue) == QUEUE:
                self._queue.popleft()
                self._dropped += 1
            self._queue.append(Frame(frame, posed))
            self._wake.notify()

    # --- on the thread ---

    def _run(self) -> None:
        while True:
            with self._wake:
                gap = self._parameters.pointmaps.max_gap if self._waiting else None
                self._wake.wait_for(lambda: self._stopping or self._restart or self._queue, gap)
                if self._stopping:
                    return
                restart, self._restart = self._restart, False
                frame = self._queue.popleft() if self._queue else None
            try:
                if restart:
                    self._clear()
                    self._feed.restart()
                if frame is not None:
                    self._take(frame)
                elif not restart:
                    self._finish("No image came for a while.")
            except ValueError as error:
                self._diagnostics.on_rejected("pointmaps", str(error))
            except Exception as error:  # what waits belongs to a stream that may be broken
                self._diagnostics.on_fault("pointmaps", error)
                self._stream, self._stream_of = None, None
                self._waiting.clear()

    def _take(self, frame: Frame) -> None:
        observation, parameters = frame.observation, self._parameters
        assert observation.info is not None
        view = observation.view(observation.info)
        width, camera = parameters.pointmaps.width, view.camera
        if width and width < camera.width:
            view = view.resized(width, max(1, round(width * camera.height / camera.width)))
        given = keeps_poses(parameters, frame.posed)
        chosen = parameters.pointmaps
        made_of = (
            view.camera, observation.image.header.frame_id, given, chosen.method, chosen.window, parameters.depth_model,
            parameters.device,
        )  # fmt: skip
        if self._stream is not None:
            self._end_where_broken(made_of, observation.stamp_ns)
        if self._stream is None:
            self._stream = self._factory.open(view.camera, parameters)
            self._stream_of, self._streams, self._given = made_of, self._streams + 1, given
        if self._path is None:
            self._path = self._new_path(observation)
        measured = view.depth if parameters.depth_source in ("auto", "sensor") else None
        self._waiting.append((frame, view))
        self._newest_stamp_ns = observation.stamp_ns
        try:
            parts = self._stream.push(view.image, depth=measured, pose=view.world_from_camera if given else None)
        except ValueError:
            self._waiting.pop()  # it is not in the stream
            raise
        for part in parts:
            self._use(part)

    def _end_where_broken(self, made_of: object, stamp_ns: int) -> None:
        gap_s = (stamp_ns - self._newest_stamp_ns) * 1e-9
        if made_of != self._stream_of:
            self._finish("The camera, its images' size, or a parameter changed.")
        elif not -1e-9 <= gap_s <= self._parameters.pointmaps.max_gap:
            self._finish(f"The stamps of two images are {gap_s:.1f} s apart.")

    def _finish(self, reason: str) -> None:
        """Ends the stream: what follows is a part of the path of its own."""
        stream, self._stream, self._stream_of = self._stream, None, None
        if stream is None:
            return
        self._log(f"pointmaps: {reason} The path begins a new part; what happened in between is not known.")
        try:
            for part in stream.finish():
                self._use(part)
            self._loops.move_memories(remembered=self._feed.placed)
        finally:
            self._waiting.clear()

    def _new_path(self, observation: Observation) -> PointmapPath:
        """A path that begins where the base is, or, if the camera's place on it is unknown, at a camera ahead."""
        try:
            self._base_from_camera = self._pose_resolver.base_from_camera(self._frame_of(observation))
            return PointmapPath(self._base_from_camera)
        except TransformUnavailableError:
            self._log(
                "pointmaps: the camera's place on the robot is unknown; ~/odometry is that of the camera, whose frame "
                "begins level, looking along x."
            )
            return PointmapPath(BODY_FROM_OPTICAL)

    def _new_loops(self) -> PointmapLoops:
        closing = self._parameters.pointmaps.close_loops
        return PointmapLoops(closing, self._with_memories, self._log, self._diagnostics.is_log_due)

    def _frame_of(self, observation: Observation) -> str:
        return self._parameters.camera_frame or observation.image.header.frame_id

    # --- results ---

    def _use(self, maps: Pointmaps) -> None:
        """Publishes a part, and offers views of it to the memories."""
        assert self._path is not None
        taken = [self._waiting.popleft() for _ in range(len(maps))]
        for text in maps.messages:
            self._diagnostics.warn(f"pointmaps: {text}", key=f"pointmaps {text[:40]}")
        reference = np.stack([self._reference_of(frame) for frame, _ in taken])
        path = self._path.extend(maps, (self._streams, int(maps.shot[0])), reference)
        headers = [
            Header(stamp=frame.observation.image.header.stamp, frame_id=self._frame_of(frame.observation))
            for frame, _ in taken
        ]
        stamps_ns = [frame.observation.stamp_ns for frame, _ in taken]
        for where, header, stamp_ns in zip(path, headers, stamps_ns, strict=True):
            if where.found and not self._given and not self._stopping:  # poses that were given are no estimate
                correction = self._loops.correct(where.pose, self._path)
                self._publishers.publish_odometry(
                    where, header, stamp_ns, self._base_from_camera, correction, self._parameters
                )
        size = maps.camera.width, maps.camera.height
        self._publishers.publish_maps(
            maps, self._path.factor, headers, lambda index: taken[index][1].resized(*size).image, lambda: self._stopping
        )
        self._done += len(maps)
        self._lost += int((~maps.frame_ok).sum())
        if not self._given:
            self._close_loops(maps, path, [view.image for _, view in taken], stamps_ns)
        self._remember(maps, path, taken)
        if not self._given:
            self._loops.finish_part(self._path)

    def _close_loops(
        self, maps: Pointmaps, path: list[PathFrame], images: list[np.ndarray], stamps_ns: list[int]
    ) -> None:
        """Looks for places that are seen again, and publishes the path as it is known now."""
        assert self._path is not None
        unknown = self._loops.begun and not self._loops.tied(self._path)
        if unknown and not self._feed.placed and self._remembered_by_pointmaps():
            self._loops = self._new_loops()  # nothing is remembered yet: the world begins with this part
        changed = self._loops.add(maps, images, path, self._path, stamps_ns, remembered=self._feed.placed)
        self._parts += 1
        if changed or self._parts % PATH_EVERY == 0:
            stamps, poses = self._loops.keyframe_path()
            correction = self._loops.correct(path[-1].pose, self._path)
            self._publishers.publish_path(stamps, poses, self._base_from_camera, correction, self._parameters)

    def _remember(self, maps: Pointmaps, path: list[PathFrame], taken: list[tuple[Frame, View]]) -> None:
        """Offers views of a part to the memories."""
        assert self._path is not None
        given, scale, loops = self._given, self._path, self._loops
        if not self._remembered_by_pointmaps() or not self._feed.accepts(
            scale, given=given, tied=loops.tied(scale), may_join=loops.close_loops
        ):
            return
        images = [view for _, view in taken]
        views = self._feed.views(
            maps, images, path, scale, remembered_depth(self._parameters), given=given, metric=loops.metric(scale)
        )
        if views:
            observation = placed_observation(taken[-1][0].observation, views)
            if not given:
                observation = replace(observation, place=loops.placed_by(scale))
            self._feed.offer(observation, given=given)

    def _remembered_by_pointmaps(self) -> bool:
        parameters = self._parameters
        if self._given or parameters.pose_source == "pointmaps":
            return self._publishers.active
        # Once poses of TF or a topic came, images without are gaps of these, and no place of their own.
        return self._publishers.active and not self._posed_seen and feeds_memories(parameters, False)

    def _reference_of(self, frame: Frame) -> np.ndarray:
        """(4, 4) pose of the same time that tells the scale; NaN if there is none."""
        observation, parameters = frame.observation, self._parameters
        if frame.posed:
            return observation.world_from_camera
        wheels = min(self._wheel_poses.copy(), key=lambda entry: abs(entry[0] - observation.stamp_ns), default=None)
        mounted = np.eye(4) if self._base_from_camera is None else self._base_from_camera
        if wheels is not None and abs(wheels[0] - observation.stamp_ns) <= parameters.sync_tolerance * 1e9:
            return wheels[1] @ mounted
        if parameters.pointmaps.scale_frame:
            pose = self._pose_resolver.base_in(parameters.pointmaps.scale_frame, observation.stamp_ns or None)
            if pose is not None:
                return pose @ mounted
        return np.full((4, 4), np.nan)


def placed_observation(newest: Observation, views: list[View]) -> PlacedObservation:
    """An observation for the worker: the newest image of a part, with the views that are to be remembered."""
    fields = {name: getattr(newest, name) for name in ("image", "info", "depth", "topic")}
    return PlacedObservation(
        **fields, world_from_camera=views[-1].world_from_camera, stamp_ns=views[-1].stamp_ns, views=tuple(views)
    )
