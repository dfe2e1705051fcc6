"""Resolves the frames, paths and poses of messages to camera poses in the world frame."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Path

from worldstereo_ros.geometry.camera_axes import BODY_FROM_OPTICAL, has_robot_frame, resolve_camera_axes
from worldstereo_ros.geometry.path_headings import headings_along, without_headings
from worldstereo_ros.geometry.poses import check_poses, interpolate_poses, invert_pose
from worldstereo_ros.ros.conversions import messages
from worldstereo_ros.ros.conversions.rotations import pose_from_quaternion
from worldstereo_ros.ros.node.jobs import ErrorCode, JobRejectedError
from worldstereo_ros.ros.node.parameters import NodeParameters
from worldstereo_ros.ros.node.tf_buffer import TransformSource, TransformUnavailableError
from worldstereo_ros.utils.errors import InputError

MAX_CAMERA_FRAMES = 100  # whose axes are kept


class PoseResolver:
    """Looks poses up in TF; the parameter `base_to_camera` replaces the camera's extrinsics if TF has none.

    Args:
        transforms: source of the transforms.
        parameters: parameters of the node.
        warn: logs (text, key), sparingly for each key: what was assumed of a path or of the camera's frame.

    Attributes:
        image_frame: optical frame of the newest image; empty before the first.
        used_fallback: the last lookup of the extrinsics used `base_to_camera`.
    """

    def __init__(
        self,
        transforms: TransformSource,
        parameters: NodeParameters,
        warn: Callable[[str, str], None] = lambda text, key: None,
    ) -> None:
        self._warn = warn
        self.reset(transforms, parameters)

    def reset(self, transforms: TransformSource, parameters: NodeParameters) -> None:
        """Starts over with another source of transforms."""
        self._transforms = transforms
        self.image_frame = ""
        self.used_fallback = False
        self.apply(parameters)

    def apply(self, parameters: NodeParameters) -> None:
        """Applies new parameters."""
        self._parameters = parameters
        self._body_axes: dict[str, bool] = {}  # by frame: whether it has body axes
        self._headings_said = False
        numbers = parameters.base_to_camera
        self._fallback = pose_from_quaternion(numbers[:3], numbers[3:]) if any(numbers) else None

    @property
    def camera_frame(self) -> str:
        """Optical frame of the camera: the parameter, else that of the newest image; empty if there is neither."""
        return self._parameters.camera_frame or self.image_frame

    def on_time_jump(self, stamp_ns: int) -> None:
        """Removes later transforms, after time jumped back to `stamp_ns`."""
        self._transforms.discard_after(stamp_ns)

    def world_from(self, frame: str, stamp_ns: int | None) -> np.ndarray:
        """Returns world_from_frame (4, 4) at a time; None = the newest.

        Raises:
            TransformUnavailableError: TF has no such transform.
            ValueError: `frame` is empty.
        """
        if not frame:
            raise InputError("The header has no frame_id; set it.")
        if frame.lstrip("/") == self._parameters.world_frame.lstrip("/"):
            return np.eye(4)
        return self._transforms.lookup(self._parameters.world_frame, frame, stamp_ns)[0]

    def world_from_camera(self, frame: str, stamp_ns: int | None) -> np.ndarray:
        """Returns the pose (4, 4) of a camera: by TF, else by the pose of the base and the extrinsics.

        Args:
            frame: frame of its images, with optical or body axes (parameter `camera_axes`).
            stamp_ns: time; None = the newest.

        Returns:
            world_from_camera, optical axes.

        Raises:
            TransformUnavailableError: neither is available.
        """
        try:
            return self._with_optical_axes(self.world_from(frame, stamp_ns), frame)
        except TransformUnavailableError as direct:
            try:
                world_from_base = self.world_from(self._parameters.base_frame, stamp_ns)
            except TransformUnavailableError as error:
                raise (direct if direct.may_arrive or not error.may_arrive else error) from None
            if self._fallback is None:
                raise
            return world_from_base @ self.base_from_camera(frame)

    def base_from_camera(self, frame: str) -> np.ndarray:
        """Returns the camera's extrinsics (4, 4), optical axes: by TF, else by the parameter `base_to_camera`.

        Raises:
            TransformUnavailableError: neither is available.
        """
        reason = ""
        if frame:
            try:
                pose = self._transforms.lookup(self._parameters.base_frame, frame, None)[0]
                self.used_fallback = False
                return self._with_optical_axes(pose, frame)
            except TransformUnavailableError as error:
                reason = f"{error} "
        if self._fallback is None:
            raise TransformUnavailableError(
                f"The camera's pose in '{self._parameters.base_frame}' is unknown. {reason}Publish it "
                "(static_transform_publisher) or set the parameter `base_to_camera`.",
                may_arrive=True,
                no_camera_frame=not frame,
            )
        self.used_fallback = True
        return self._fallback

    def _with_optical_axes(self, pose: np.ndarray, frame: str) -> np.ndarray:
        """The pose of the optical axes of a frame of TF, whose own axes may be those of a body."""
        return pose @ BODY_FROM_OPTICAL if self._has_body_axes(frame) else pose

    def _has_body_axes(self, frame: str) -> bool:
        setting, frame = self._parameters.camera_axes, frame.lstrip("/")
        if setting != "auto" or frame in self._body_axes:
            return self._body_axes.get(frame, setting == "body")
        try:  # z of the robot is up
            pose, z_up = self._transforms.lookup(self._parameters.base_frame, frame, None)[0], True
        except TransformUnavailableError:
            pose, z_up = self.world_from(frame, None), has_robot_frame([self._parameters.world_frame, frame])
        is_body, warning = resolve_camera_axes(setting, frame, pose, z_up=z_up, remedy="camera_axes:")
        if warning:
            self._warn(warning, f"camera axes {frame}")
        if len(self._body_axes) < MAX_CAMERA_FRAMES:
            self._body_axes[frame] = is_body
        return is_body

    def base_in(self, frame: str, stamp_ns: int | None) -> np.ndarray | None:
        """Returns frame_from_base (4, 4) at a time (None = the newest), such as of wheel odometry; None without one."""
        try:
            return self._transforms.lookup(frame, self._parameters.base_frame, stamp_ns)[0]
        except TransformUnavailableError:
            return None

    def base_from_world(self) -> tuple[np.ndarray, int]:
        """Returns the newest (base_from_world (4, 4), its stamp in ns). Raises TransformUnavailableError."""
        return self._transforms.lookup(self._parameters.base_frame, self._parameters.world_frame, None)

    def camera_poses(self, poses: np.ndarray, frame: str = "") -> np.ndarray:
        """Converts poses of the base or the camera (parameter `path_pose_frame`) to poses of the camera.

        Args:
            poses: (..., 4, 4) in the world frame.
            frame: optical frame; empty = `camera_frame`.

        Returns:
            (..., 4, 4) world_from_camera.

        Raises:
            TransformUnavailableError: the extrinsics are not available.
        """
        if self._parameters.path_pose_frame == "camera":
            return poses
        return poses @ self.base_from_camera(frame or self.camera_frame)

    def path_poses(self, path: Path, views: int) -> np.ndarray:
        """Returns camera poses (F, 4, 4) along a path.

        Args:
            path: poses of the base or the camera (parameter `path_pose_frame`), each in any frame.
            views: number of poses, spread evenly along the path; 0 = one per pose of the path.

        Raises:
            JobRejectedError: INVALID_PATH, TF_ERROR, NO_OBSERVATION or TOO_LARGE.
        """
        count = views or len(path.poses)
        if count > self._parameters.max_views and len(path.poses) <= self._parameters.max_path_poses:
            raise JobRejectedError(
                ErrorCode.TOO_LARGE,
                f"{count} views were requested; at most {self._parameters.max_views} are accepted (parameter "
                "`max_views`). " + ("Request fewer." if views else "Set `views` to spread fewer views along the path."),
            )
        _, camera_poses = self.resolve_path(path)
        try:
            return interpolate_poses(camera_poses, views) if views else check_poses(camera_poses)
        except InputError as error:
            raise JobRejectedError(ErrorCode.INVALID_PATH, str(error)) from None

    def resolve_path(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        """Returns the poses of a path in the world frame.

        Args:
            path: as in `path_poses`.

        Returns:
            (poses (N, 4, 4) of what the path has poses of, the base or the camera, with headings; world_from_camera
            (N, 4, 4)).

        Raises:
            JobRejectedError: as `path_poses`.
        """
        parameters = self._parameters
        if len(path.poses) > parameters.max_path_poses:
            raise JobRejectedError(
                ErrorCode.TOO_LARGE,
                f"The path has {len(path.poses)} poses; at most {parameters.max_path_poses} are accepted "
                "(parameter `max_path_poses`).",
            )
        try:
            frames, poses = messages.path_matrices(path)
        except ValueError as error:
            raise JobRejectedError(ErrorCode.INVALID_PATH, str(error)) from None
        missing = self._missing_headings(path, frames, poses)
        try:
            poses = self._with_headings(self._world_from_frames(path, frames) @ poses, missing)
            return poses, self.camera_poses(poses)
        except TransformUnavailableError as error:
            if error.no_camera_frame:
                raise JobRejectedError(
                    ErrorCode.NO_OBSERVATION,
                    "The camera's frame is unknown because no image was received. Publish one, or set the parameter "
                    "`camera_frame` or `base_to_camera`.",
                ) from None
            raise JobRejectedError(
                ErrorCode.TF_ERROR,
                f"The path cannot be transformed to camera poses in '{parameters.world_frame}'. {error}",
            ) from None

    def robot_now(self, newest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns where the robot is: by the newest transforms, else where its newest image was taken.

        Args:
            newest: (4, 4) world_from_camera of the newest image.

        Returns:
            (pose (4, 4) of what paths have poses of, the base or the camera; world_from_camera (4, 4)).

        Raises:
            JobRejectedError: TF_ERROR, if neither TF nor `base_to_camera` says where the camera is on the robot.
        """
        frame = self.camera_frame
        try:
            camera = self.world_from_camera(frame, None) if frame else newest
        except TransformUnavailableError:
            camera = newest
        if self._parameters.path_pose_frame == "camera":
            return camera, camera
        try:
            return camera @ invert_pose(self.base_from_camera(frame)), camera
        except TransformUnavailableError as error:
            raise JobRejectedError(ErrorCode.TF_ERROR, f"The place of the robot is unknown. {error}") from None

    def single_pose(self, stamped: PoseStamped) -> np.ndarray:
        """Returns the camera pose (1, 4, 4) of one stamped pose. Raises JobRejectedError as `path_poses`."""
        return self.path_poses(Path(header=stamped.header, poses=[stamped]), 0)

    def _world_from_frames(self, path: Path, frames: list[str]) -> np.ndarray:
        """world_from_frame of each pose (N, 4, 4). Each frame is looked up once for each stamp.

        The stamp is that of the path. A path without one has those of its poses, since its parts may be older than it.
        """
        path_ns = messages.nanoseconds(path.header.stamp)
        found: dict[tuple[str, int], np.ndarray] = {}
        transforms = np.empty((len(frames), 4, 4))
        for index, frame in enumerate(frames):
            key = frame, path_ns or messages.nanoseconds(path.poses[index].header.stamp)
            if key not in found:
                found[key] = self._world_from_at_or_newest(frame, key[1] or None)
            transforms[index] = found[key]
        return transforms

    def _missing_headings(self, path: Path, frames: list[str], poses: np.ndarray) -> np.ndarray:
        """(N,) bool: the poses of a path that look along it, by the parameter `path_heading`."""
        parameters = self._parameters
        if parameters.path_heading == "tangent":
            return np.ones(len(poses), dtype=bool)
        # In the frame of the robot, and for a camera, no rotation is a heading like any other.
        own = {parameters.base_frame, self.camera_frame}
        if parameters.path_heading == "pose" or parameters.path_pose_frame == "camera" or own & set(frames):
            return np.zeros(len(poses), dtype=bool)
        orientations = [stamped.pose.orientation for stamped in path.poses]
        return without_headings(np.array([(q.x, q.y, q.z, q.w) for q in orientations]), poses[:, :3, 3])

    def _with_headings(self, poses: np.ndarray, missing: np.ndarray) -> np.ndarray:
        """Turns the `missing` ones of the poses (N, 4, 4) in the world frame along the path."""
        headings = headings_along(poses[:, :3, 3]) if missing.any() else None
        if headings is None:
            return poses
        if self._parameters.path_pose_frame == "camera":
            headings = headings @ BODY_FROM_OPTICAL[:3, :3]
        turned = not np.allclose(poses[missing, :3, :3], headings[missing], atol=0.02)
        if self._parameters.path_heading == "auto" and turned and not self._headings_said:
            self._headings_said = True  # once: a planner without headings sends all of its plans so
            self._warn(
                "The poses of the path have no headings (their orientations are 0 0 0 1), so the views look along the "
                "path. To look as the poses say, set the parameter `path_heading` to pose.",
                "path headings",
            )
        poses = poses.copy()
        poses[missing, :3, :3] = headings[missing]
        return poses

    def _world_from_at_or_newest(self, frame: str, stamp_ns: int | None) -> np.ndarray:
        """At the stamp if TF has it, else the newest: planners stamp paths with the current time, ahead of TF."""
        try:
            return self.world_from(frame, stamp_ns)
        except TransformUnavailableError:
            return self.world_from(frame, None)
