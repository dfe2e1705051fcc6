"""The topics `~/stereo/*`: the camera's image as the left eye of a pair, and the right eye that is made of it.

    image, camera_info, depth ─► matched ─► mailbox (newest wins) ─► StereoStream on a thread of its own ─► topics

It works beside the worker, which owns the memories: a pair waits for no job, and no job for a pair. Frames are taken
only while one of the topics has subscribers, and what has none is not computed.
"""

from __future__ import annotations

import copy
import functools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from rclpy.lifecycle import LifecycleNode
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header
from stereo_msgs.msg import DisparityImage

from worldstereo_ros.depth.estimators import NONE, DepthEstimator, load_depth_estimator
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.imaging.stereo_layouts import LAYOUTS
from worldstereo_ros.pipelines.stereo.pipeline import GeometricStereo
from worldstereo_ros.pipelines.stereo.settings import GEOMETRIC, REFINER, SMALL, StereoSettings
from worldstereo_ros.pipelines.stereo.streaming import LeftEye, StereoPair, StereoStream
from worldstereo_ros.ros.conversions import qos
from worldstereo_ros.ros.conversions.messages import colour_message, info_message
from worldstereo_ros.ros.conversions.stereo import disparity_message, jpeg_message, right_info_message
from worldstereo_ros.ros.node.diagnostics import NodeDiagnostics
from worldstereo_ros.ros.node.jobs import Mailbox
from worldstereo_ros.ros.node.parameters import NodeParameters
from worldstereo_ros.ros.node.synchronizer import Observation
from worldstereo_ros.ros.node.world_factory import effective_device
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.weights.bundled import has_bundled

LEFT, LEFT_INFO = "~/stereo/left/image_rect", "~/stereo/left/camera_info"
RIGHT, RIGHT_INFO = "~/stereo/right/image_rect", "~/stereo/right/camera_info"
SOURCE, DISPARITY = "~/stereo/right/source", "~/stereo/disparity"
SBS, SBS_JPEG = "~/stereo/sbs", "~/stereo/sbs/compressed"
STEREO_OUTPUTS = (
    # name, type, profile, description
    (LEFT, Image, qos.VIEW, "the camera's image without distortion, rgb8, with its stamp and frame_id"),
    (LEFT_INFO, CameraInfo, qos.VIEW, "its camera, with the same header"),
    (
        RIGHT,
        Image,
        qos.VIEW,
        "the right eye, rgb8, with the same header: made of the left one by depth, and no measurement",
    ),
    (RIGHT_INFO, CameraInfo, qos.VIEW, "its camera, with the same header: P[3] is -fx times base times strength"),
    (
        SOURCE,
        Image,
        qos.VIEW,
        "mono8, where each pixel of the right eye comes from: 255 = seen now, 128 = seen in a past frame, 0 = painted",
    ),
    (
        DISPARITY,
        DisparityImage,
        qos.VIEW,
        "the disparity that the right eye was drawn with, for each pixel of the left one; -1 = unknown. It is the "
        "depth that was put in, measured or estimated",
    ),
    (SBS, Image, qos.VIEW, "both eyes side by side, rgb8, the left one on the left, each in full size"),
    (SBS_JPEG, CompressedImage, qos.VIEW, "the same as JPEG"),
)
NEED_RIGHT = frozenset({RIGHT, SOURCE, SBS, SBS_JPEG})
NEED_DEPTH = NEED_RIGHT | {DISPARITY}  # the rest show the camera alone
STOP_TIMEOUT_S = 3.0


@dataclass(frozen=True)
class _Estimator:
    """A depth estimator, and the parameters that it was loaded by."""

    name: str
    device: str
    estimate: DepthEstimator | None


class StereoOutput:
    """Makes and publishes stereo pairs, while the node is configured.

    `offer` is called by the executor, everything else happens on its own thread.

    Args:
        node: node on which the publishers are created; they send while it is active.
        parameters: parameters of the node.
        diagnostics: counts frames that cannot be used.
        log: logs a line at level info.

    Attributes:
        names: names of the topics.
    """

    def __init__(
        self,
        node: LifecycleNode,
        parameters: NodeParameters,
        diagnostics: NodeDiagnostics,
        log: Callable[[str], object],
    ) -> None:
        self._node, self._diagnostics, self._log = node, diagnostics, log
        overrides = QoSOverridingOptions.with_default_policies()
        self._publishers = {
            name: node.create_lifecycle_publisher(kind, name, copy.copy(profile), qos_overriding_options=overrides)
            for name, kind, profile, _ in STEREO_OUTPUTS
        }
        self.names = list(self._publishers)
        self._parameters = parameters
        self._stream: StereoStream | None = None
        self._stream_of: object = None  # what the stream was made of
        self._estimator: _Estimator | None = None
        self._estimated: bool | None = None
        self._last_taken_at = -1e9
        self._last_frame: tuple[str, int] | None = None
        self._wake = threading.Condition()
        self._frames: Mailbox[tuple[Observation, bool]] = Mailbox()
        self._stopping = False
        self._made, self._seconds = 0, 0.0
        self._thread = threading.Thread(target=self._run, name="worldstereo_stereo", daemon=True)
        self._thread.start()

    def apply(self, parameters: NodeParameters) -> None:
        """Applies new parameters from the next frame on."""
        self._parameters = parameters

    def close(self) -> bool:
        """Ends the thread and destroys the publishers. Returns False if the thread hangs; it ends with the process."""
        with self._wake:
            self._stopping = True
            self._frames.take()
            self._wake.notify()
        self._thread.join(STOP_TIMEOUT_S)
        for publisher in self._publishers.values():
            self._node.destroy_lifecycle_publisher(publisher)
        return not self._thread.is_alive()

    @property
    def status(self) -> dict[str, object]:
        """Values for the diagnostics."""
        depth = {None: "none yet", True: "estimated", False: "measured"}[self._estimated]
        return {
            "stereo frames": self._made,
            "stereo frames dropped": self._frames.dropped,
            "stereo seconds per frame": f"{self._seconds:.3f}" if self._made else "unknown",
            "stereo depth": depth,
        }

    def _heard(self) -> frozenset[str]:
        """Names of the topics that have subscribers."""
        return frozenset(
            name
            for name, publisher in self._publishers.items()
            if publisher.is_activated and publisher.get_subscription_count() > 0
        )

    def offer(self, frame: Observation, posed: bool) -> None:
        """Takes the next image with its camera_info and depth, if there are subscribers. It replaces one that waits.

        Args:
            frame: the image.
            posed: its pose is known.
        """
        now, rate = time.monotonic(), self._parameters.stereo.max_rate
        if (rate and now - self._last_taken_at < 1 / rate) or not self._heard():
            return
        identity = (frame.image.header.frame_id, frame.stamp_ns)
        if frame.stamp_ns and identity == self._last_frame:
            return  # a driver that publishes raw and compressed images sends each one twice
        self._last_frame, self._last_taken_at = identity, now
        with self._wake:
            self._frames.put((frame, posed))
            self._wake.notify()

    # --- on the thread ---

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._stopping or self._frames.peek() is not None)
                if self._stopping:
                    return
                taken = self._frames.take()
            assert taken is not None
            try:
                self._make(*taken)
            except ValueError as error:
                self._diagnostics.on_rejected("stereo", str(error))
            except Exception as error:
                self._diagnostics.on_fault("stereo", error)

    def _make(self, frame: Observation, posed: bool) -> None:
        heard = self._heard()
        if not heard or frame.info is None:
            return
        started, parameters = time.monotonic(), self._parameters
        view = frame.view(frame.info)
        stream = self._stream_for(parameters)
        header = Header(stamp=frame.image.header.stamp, frame_id=parameters.camera_frame or frame.image.header.frame_id)
        left_camera, right_camera = stream.left_camera(view.camera), stream.right_camera(view.camera)
        made: dict[str, Callable[[], object]] = {  # the infos first: some receivers take the newest with each image
            LEFT_INFO: lambda: info_message(left_camera, header),
            RIGHT_INFO: lambda: right_info_message(right_camera, stream.settings.effective_base, header),
        }
        if heard & NEED_DEPTH:
            stamp_s = frame.stamp_ns * 1e-9 if frame.stamp_ns else None
            pose = frame.world_from_camera if posed else None
            arguments = view.image, view.camera, self._depth_of(view, parameters), stamp_s, pose
            left = stream.push(*arguments) if heard & NEED_RIGHT else stream.left_eye(*arguments)
            self._say_depth(left.estimated)
            made |= _depth_messages(left, parameters.stereo.jpeg_quality, header)
        else:
            stream.restart()  # what is not made leaves nothing behind
            made[LEFT] = lambda: colour_message(stream.resize(view.image, view.camera), header)
        for name in [name for name in made if name in heard]:
            message = made[name]()
            if not self._stopping:
                self._publishers[name].publish(message)
        seconds = time.monotonic() - started
        self._seconds = 0.9 * self._seconds + 0.1 * seconds if self._made else seconds
        self._made += 1

    def _depth_of(self, view: View, parameters: NodeParameters) -> np.ndarray | None:
        """The measured depth of a view; None if it is to be estimated. Raises InputError if there is none at all."""
        if view.depth is None and self._estimator_for(parameters) is None:
            raise InputError(
                "The image has no depth, and none is estimated (`depth_source` is sensor, or `depth_model` is none). "
                "Publish depth, or set these parameters."
            )
        return view.depth

    def _stream_for(self, parameters: NodeParameters) -> StereoStream:
        """The stream of the parameters; another one if they changed."""
        chosen = parameters.stereo
        made_of = (chosen, parameters.depth_source, parameters.depth_model, parameters.device)
        if self._stream is None or made_of != self._stream_of:
            settings = StereoSettings(
                base=chosen.base,
                strength=chosen.strength,
                convergence=chosen.convergence or None,
                memory=chosen.memory,
                threads=chosen.threads,
            )
            for note in settings.notes:
                self._log(f"stereo: {note}")
            make = functools.partial(make_pipeline, model=chosen.model, device=effective_device(parameters.device))
            self._stream = StereoStream(
                settings, self._estimator_for(parameters), width=chosen.width, make_pipeline=make
            )
            self._stream_of = made_of
        return self._stream

    def _estimator_for(self, parameters: NodeParameters) -> DepthEstimator | None:
        """The estimator for images without depth. It is another one than the worker's, which works at the same time."""
        name = NONE if parameters.depth_source == "sensor" else parameters.depth_model
        device = effective_device(parameters.device)
        loaded = self._estimator
        if loaded is None or (loaded.name, loaded.device) != (name, device):
            loaded = self._estimator = _Estimator(name, device, load_depth_estimator(name, device))
        return loaded.estimate

    def _say_depth(self, estimated: bool) -> None:
        """Logs where depth comes from, when that changes."""
        before, self._estimated = self._estimated, estimated
        if before == estimated or not self._diagnostics.is_log_due(f"stereo depth {estimated}"):
            return
        self._log(
            "stereo: the images have no measured depth; the right eye is drawn with estimated depth, and how strong "
            "the effect is depends on the estimate."
            if estimated
            else "stereo: the right eye is drawn with measured depth (topic depth)."
        )


def _depth_messages(left: LeftEye, jpeg_quality: int, header: Header) -> dict[str, Callable[[], object]]:
    """What makes the messages of a pair, or of its left eye."""
    made: dict[str, Callable[[], object]] = {
        LEFT: lambda: colour_message(left.left, header),
        DISPARITY: lambda: disparity_message(
            left.disparity, left.left_camera.fx, left.base, left.max_disparity, header
        ),
    }
    if isinstance(left, StereoPair):
        pair = left
        both = functools.cache(lambda: np.ascontiguousarray(LAYOUTS["sbs"].arrange(pair.left, pair.right)))
        made |= {
            RIGHT: lambda: colour_message(pair.right, header),
            SOURCE: lambda: colour_message(pair.source, header),
            SBS: lambda: colour_message(both(), header),
            SBS_JPEG: lambda: jpeg_message(both(), jpeg_quality, header),
        }
    return made


def default_model(device: str) -> str:
    """What paints if `stereo.model` is empty: on a CPU a pair of 640x480 takes seven times as long with the network."""
    return SMALL if device != "cpu" and has_bundled(REFINER) else GEOMETRIC


def make_pipeline(camera: Camera, settings: StereoSettings, *, model: str = "", device: str) -> GeometricStereo:
    """The pipeline of a camera, with what paints its holes.

    Args:
        camera: intrinsics.
        settings: what the pair is to be like.
        model: see `painting.load_painter`; empty: see `default_model`.
        device: torch device.

    Raises:
        InputError: there are no weights of the model.
    """
    model = model or default_model(device)
    if model == GEOMETRIC:
        return GeometricStereo(camera, settings)
    from worldstereo_ros.pipelines.stereo.painting import load_painter  # imports torch

    return GeometricStereo(camera, settings, painter=load_painter(model, device))
