"""Which frame is what: from frames, paths and poses of messages to camera poses in the world frame."""

from __future__ import annotations

import numpy as np
from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Path

from worldstereo_ros.geometry.poses import interpolate_poses, pose_from_quaternion
from worldstereo_ros.ros.conversions import messages
from worldstereo_ros.ros.node.jobs import ErrorCode, JobRefused
from worldstereo_ros.ros.node.parameters import NodeParameters
from worldstereo_ros.ros.node.tf_buffer import TransformSource, TransformUnavailableError
from worldstereo_ros.utils.errors import InputError


class PoseResolver:
    """Answers where things are, by TF and, where TF lacks the camera's place on the robot, by a parameter.

    Attributes:
        seen_camera_frame: optical frame of the newest image; empty before the first.
        used_fallback: the last answer took `base_to_camera` because TF had none.
    """

    def __init__(self, transforms: TransformSource, settings: NodeParameters) -> None:
        self._transforms = transforms
        self.seen_camera_frame = ""
        self.used_fallback = False
        self.apply(settings)

    def apply(self, settings: NodeParameters) -> None:
        """Takes up parameters."""
        self._settings = settings
        numbers = settings.base_to_camera
        self._fallback = pose_from_quaternion(numbers[:3], numbers[3:]) if any(numbers) else None

    @property
    def camera_frame(self) -> str:
        """Optical frame of the camera: the parameter, else the newest image's; empty where neither is."""
        return self._settings.camera_frame or self.seen_camera_frame

    def time_went_back(self, stamp_ns: int) -> None:
        """Forgets the transforms that are later."""
        self._transforms.forget_after(stamp_ns)

    def world_from(self, frame: str, stamp_ns: int | None) -> np.ndarray:
        """(4, 4) world_from_frame. Raises TransformMissing, or ValueError where no frame is named."""
        if not frame:
            raise InputError("The header names no frame; set its frame_id.")
        if frame.lstrip("/") == self._settings.world_frame.lstrip("/"):
            return np.eye(4)
        return self._transforms.lookup(self._settings.world_frame, frame, stamp_ns)[0]

    def world_from_camera(self, frame: str, stamp_ns: int | None) -> np.ndarray:
        """(4, 4) pose of the optical frame `frame`; where TF does not know it, by the base. Raises TransformMissing."""
        try:
            return self.world_from(frame, stamp_ns)
        except TransformUnavailableError as direct:
            try:
                base = self.world_from(self._settings.base_frame, stamp_ns)
            except TransformUnavailableError as error:
                raise (direct if direct.may_come or not error.may_come else error) from None
            if self._fallback is None:
                raise
            return base @ self.base_from_camera(frame)

    def base_from_camera(self, frame: str) -> np.ndarray:
        """(4, 4) pose of the camera on the robot: by TF, else the parameter `base_to_camera`.

        Raises:
            TransformUnavailableError: neither says.
        """
        why = ""
        if frame:
            try:
                pose = self._transforms.lookup(self._settings.base_frame, frame, None)[0]
                self.used_fallback = False
                return pose
            except TransformUnavailableError as error:
                why = str(error)
        if self._fallback is None:
            raise TransformUnavailableError(
                f"Where the camera sits on '{self._settings.base_frame}' is not known. {why} Publish it "
                "(static_transform_publisher), or set the parameter `base_to_camera`.",
                may_come=True,
                camera_unknown=not frame,
            )
        self.used_fallback = True
        return self._fallback

    def base_from_world(self) -> tuple[np.ndarray, int]:
        """(base_from_world (4, 4), its stamp) as new as there is. Raises TransformMissing."""
        return self._transforms.lookup(self._settings.base_frame, self._settings.world_frame, None)

    def camera_pose(self, world_from_thing: np.ndarray, frame: str = "") -> np.ndarray:
        """(..., 4, 4) camera poses from poses of the base or of the camera, as the parameter `path_pose_frame` says."""
        if self._settings.path_pose_frame == "camera":
            return world_from_thing
        frame = frame or self.camera_frame
        return world_from_thing @ self.base_from_camera(frame)

    def poses_of_path(self, path: Path, views: int) -> np.ndarray:
        """(F, 4, 4) camera poses along a path; `views` 0 = one a pose.

        Raises:
            JobRefused: INVALID_PATH, TF_ERROR, TOO_LARGE.
        """
        settings = self._settings
        if len(path.poses) > settings.max_path_poses:
            raise JobRefused(
                ErrorCode.TOO_LARGE,
                f"The path has {len(path.poses)} poses; at most {settings.max_path_poses} are taken "
                "(parameter `max_path_poses`).",
            )
        wanted = views or len(path.poses)
        if wanted > settings.max_views:
            raise JobRefused(
                ErrorCode.TOO_LARGE,
                f"{wanted} views were asked for; at most {settings.max_views} are made (parameter `max_views`). "
                + ("Set `views` to have them spread along the path." if not views else "Ask for fewer."),
            )
        try:
            names, poses = messages.path_matrices(path)
        except ValueError as error:
            raise JobRefused(ErrorCode.INVALID_PATH, str(error)) from None
        stamp = messages.nanoseconds(path.header.stamp) or None
        try:
            for name in set(names):
                world = self._world_from_at_or_newest(name, stamp)
                index = [i for i, other in enumerate(names) if other == name]
                poses[index] = world @ poses[index]
            cameras = self.camera_pose(poses)
        except TransformUnavailableError as error:
            if error.camera_unknown:
                raise JobRefused(
                    ErrorCode.NO_OBSERVATION,
                    "No image has come yet, so the camera's frame is not known. Send one, or set the parameter "
                    "`camera_frame` (or `base_to_camera`).",
                ) from None
            raise JobRefused(
                ErrorCode.TF_ERROR, f"The path cannot be brought to camera poses in '{settings.world_frame}'. {error}"
            ) from None
        return interpolate_poses(cameras, views) if views else cameras

    def pose_of(self, stamped: PoseStamped) -> np.ndarray:
        """(1, 4, 4) camera pose of one stamped pose. Raises JobRefused."""
        path = Path(header=stamped.header, poses=[stamped])
        return self.poses_of_path(path, 0)

    def _world_from_at_or_newest(self, frame: str, stamp_ns: int | None) -> np.ndarray:
        """At the stamp where TF has it, else now: planners stamp paths with the time of planning, ahead of TF."""
        try:
            return self.world_from(frame, stamp_ns)
        except TransformUnavailableError:
            return self.world_from(frame, None)
