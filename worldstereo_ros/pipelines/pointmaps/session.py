"""Writes point maps as a session: a posed sequence with a map, which the viewer and the world model load.

Frames are kept on disk until the end, when the scale of all is known, so that a long video needs little memory.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

import cv2
import numpy as np

from worldstereo_ros.geometry.cameras import Camera, unproject
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.geometry.views import View
from worldstereo_ros.imaging.resizing import resize_image
from worldstereo_ros.io.bags.write_pointmaps import write_pointmap_bag
from worldstereo_ros.io.point_clouds import write_point_cloud
from worldstereo_ros.io.posed_sequences import write_sequence
from worldstereo_ros.io.trajectory_files import write_kitti, write_tum
from worldstereo_ros.memory.archive import save_archive
from worldstereo_ros.memory.bank import ViewBank
from worldstereo_ros.memory.cloud import CloudMemory
from worldstereo_ros.pipelines.pointmaps.estimate import scale_by_odometry
from worldstereo_ros.pipelines.pointmaps.loops import LoopCloser
from worldstereo_ros.pipelines.pointmaps.types import GIVEN_DEPTH, GIVEN_ODOMETRY, GUESS, Pointmaps
from worldstereo_ros.utils.atomic_files import write_json
from worldstereo_ros.utils.errors import InputError

MAP_FILE, CLOUD_FILE, SUMMARY_FILE = "world.wsmap", "cloud.ply", "pointmaps.json"
TUM_FILE, KITTI_FILE, DYNAMIC_FOLDER, PLY_FOLDER = "poses_tum.txt", "poses_kitti.txt", "dynamic", "points"
BAG_FOLDER = "bag"
SESSION_NAMES = (
    "frames", "depth", "provenance", "depth_confidence", "confidence", "observed", "conditioning", "poses.txt",
    "intrinsics.json", "timestamps.txt", MAP_FILE, CLOUD_FILE, SUMMARY_FILE, TUM_FILE, KITTI_FILE, DYNAMIC_FOLDER,
    PLY_FOLDER, BAG_FOLDER,
)  # fmt: skip
CAMERA_FIELDS = ("width", "height", "fx", "fy", "cx", "cy")
MIN_MAP_CONFIDENCE = 0.2  # of a point in the cloud and the map
VOXEL_DEPTHS, MIN_VOXEL = 1 / 150, 0.01  # edge of a voxel, in median depths; in the unit of the map
BANK_VIEWS = 48


@dataclass
class Session:
    """Frames so far. Use as a context manager: its temporary files go at the end.

    Attributes:
        metadata: of each frame: pose, its covariance, whether it was found, shot, seconds, whether depth is measured.
        given_metric: poses and depth that are given are in metres; False: in an unknown unit.
        close_loops: correct the path where a place is seen again.
        source_size: width and height of the frames before they were reduced.
    """

    folder: Path = field(init=False)
    metadata: list[dict[str, Any]] = field(default_factory=list)
    camera: Camera | None = None
    scale_from: str = GUESS
    method: str = ""
    messages: list[str] = field(default_factory=list)
    given_metric: bool = True
    close_loops: bool = True
    source_size: tuple[int, int] | None = None
    _closer: LoopCloser = field(default_factory=LoopCloser, repr=False)
    _joined: np.ndarray | None = field(default=None, repr=False)

    def __enter__(self) -> Session:
        self._temporary = tempfile.TemporaryDirectory(prefix="worldstereo_pointmaps_")
        self.folder = Path(self._temporary.name)
        return self

    def __exit__(self, *error: object) -> None:
        self._temporary.cleanup()

    def add(
        self,
        maps: Pointmaps,
        images: Sequence[np.ndarray],
        seconds: Sequence[float],
        measured: Sequence[bool] | None = None,
    ) -> None:
        """Adds the point maps of the next frames.

        Args:
            maps: of these frames.
            images: of any size.
            seconds: times.
            measured: whether a sensor measured the depth of a frame; None: of all, if the scale is from depth.
        """
        if self.camera is None:
            self.camera, self.scale_from, self.method = maps.camera, maps.scale_from, maps.method
        if not maps.metric:
            self.scale_from = GUESS
        if self.source_size is None and len(images):
            self.source_size = images[0].shape[1], images[0].shape[0]
        if self.close_loops:
            self._closer.add(maps, images)
        depth = maps.depth
        by_sensor = [maps.scale_from == GIVEN_DEPTH] * len(maps) if measured is None else measured
        for f, (image, time) in enumerate(zip(images, seconds, strict=True)):
            index = len(self.metadata)
            if image.shape[:2] != (maps.camera.height, maps.camera.width):
                image = resize_image(image, maps.camera.width, maps.camera.height)
            np.savez(
                self.folder / f"{index:06d}.npz", image=image, depth=depth[f], dynamic=maps.dynamic[f],
                confidence=np.rint(maps.confidence[f] * 255).astype(np.uint8),
            )  # fmt: skip
            self.metadata.append(
                {
                    "pose": maps.poses[f], "covariance": maps.pose_covariance[f], "ok": bool(maps.frame_ok[f]),
                    "shot": int(maps.shot[f]), "seconds": float(time), "measured": bool(by_sensor[f]),
                }
            )  # fmt: skip
        self.messages += [text for text in maps.messages if text not in self.messages]

    def longest_shot(self, joined: np.ndarray | None = None) -> list[int]:
        """Numbers of the frames of the longest shot whose pose was found; `joined` are the shots after joining."""
        shots: dict[int, list[int]] = {}
        for index, each in enumerate(self.metadata):
            if each["ok"]:
                shots.setdefault(each["shot"] if joined is None else int(joined[index]), []).append(index)
        return max(shots.values(), key=len) if shots else []

    def views(self, odometry: np.ndarray | None = None) -> SessionViews:
        """The frames of the longest shot whose pose was found, in the axes of the first of them.

        Shots that show one place are one, if loops are closed.

        Args:
            odometry: (F, 4, 4) poses of the robot at the times of all frames, for the scale, where nothing else tells
                it. Those of frames without are NaN.

        Raises:
            InputError: no frame has a pose.
        """
        closure = self._closer.close() if self.close_loops and self.metadata else None
        rows = self.longest_shot(None if closure is None else closure.shots)
        if not rows or self.camera is None:
            raise InputError("No frame has a pose, so there is nothing to write. " + " ".join(self.messages))
        poses, factors, loops = np.stack([self.metadata[row]["pose"] for row in rows]), np.ones(len(rows)), 0
        if closure is not None:
            self._joined = closure.shots
            poses, factors, loops = closure.poses[rows], closure.scale[rows], len(closure.loops)
            self.messages += [closure.message] if closure.message and closure.message not in self.messages else []
        poses = np.linalg.inv(poses[0]) @ poses
        factor, scale_from = 1.0, self.scale_from
        if odometry is not None and scale_from == GUESS:
            known = np.isfinite(odometry[rows]).all(axis=(1, 2))
            found = scale_by_odometry(poses[known], odometry[rows][known]) if known.sum() > 1 else None
            if found is None:
                self.messages.append("The odometry moves too little to tell the scale.")
            else:
                factor, scale_from = found, GIVEN_ODOMETRY
                self.messages = [text for text in self.messages if "metric: false" not in text]
        poses[:, :3, 3] *= factor
        return SessionViews(self, rows, poses, factors * factor, scale_from, loops)

    def write(
        self, out: Path, *, odometry: np.ndarray | None = None, ply: bool = False, bag: bool = False
    ) -> dict[str, Any]:
        """Writes the longest shot and the summary.

        Args:
            out: folder, which exists.
            odometry: (F, 4, 4) poses of the robot at the times of all frames, for the scale.
            ply: also a cloud of each frame.
            bag: also an MCAP bag (`io.bags.write_pointmaps`).

        Returns:
            The summary, as in `SUMMARY_FILE`.

        Raises:
            InputError: no frame has a pose.
            WriteError, CloudFileError, BagError: a file cannot be written.
        """
        views = self.views(odometry)
        rows, poses = views.rows, views.poses
        write_sequence(out, views)
        seconds = np.array([self.metadata[row]["seconds"] for row in rows])
        write_tum(out / TUM_FILE, poses, seconds)
        write_kitti(out / KITTI_FILE, poses)
        cloud, bank = self._map(views, out, ply)
        save_archive(out / MAP_FILE, cloud, bank, {"pipeline": "pointmaps", "metric": views.metric})
        if bag:
            shutil.rmtree(out / BAG_FOLDER, ignore_errors=True)  # of an earlier run
            frames = (views.load(index)[:2] for index in range(len(views)))
            write_pointmap_bag(out / BAG_FOLDER, frames, metric=views.metric)
        if len(cloud):
            write_point_cloud(cloud, out / CLOUD_FILE)
        else:
            self.messages.append("No point is sure enough for the cloud.")
        summary = self._summary(views, len(cloud))
        write_json(out / SUMMARY_FILE, summary)
        return summary

    def _map(self, views: SessionViews, out: Path, ply: bool) -> tuple[CloudMemory, ViewBank]:
        (out / DYNAMIC_FOLDER).mkdir(parents=True, exist_ok=True)
        cloud: CloudMemory | None = None
        bank = ViewBank(BANK_VIEWS)
        kept = set(np.linspace(0, len(views) - 1, min(len(views), BANK_VIEWS)).round().astype(int).tolist())
        for index in range(len(views)):
            view, dynamic, confidence = views.load(index)
            assert view.depth is not None
            if not cv2.imwrite(str(out / DYNAMIC_FOLDER / f"{index:06d}.png"), dynamic.astype(np.uint8) * 255):
                raise InputError(f"{out / DYNAMIC_FOLDER} cannot be written to; check the space that is left.")
            if cloud is None:
                known = view.depth[view.depth > 0]
                middle = float(np.median(known)) if known.size else 1.0
                cloud = CloudMemory(voxel_size=max(MIN_VOXEL, middle * VOXEL_DEPTHS))
            sure = (confidence >= MIN_MAP_CONFIDENCE) & ~dynamic
            chosen = np.where(sure, view.depth, np.float32(0))
            static = replace(view, depth=chosen)
            if (chosen > 0).any():
                cloud.insert(static)
            if index in kept:
                bank.add(static)
            if ply:
                (out / PLY_FOLDER).mkdir(exist_ok=True)
                points = _FrameCloud.of(view, dynamic, confidence)
                if len(points.points):
                    write_point_cloud(points, out / PLY_FOLDER / f"{index:06d}.ply")
        assert cloud is not None
        return cloud, bank

    def _summary(self, views: SessionViews, points: int) -> dict[str, Any]:
        steps = np.linalg.norm(np.diff(views.poses[:, :3, 3], axis=0), axis=1)
        # Between two shots that were joined the camera went unseen.
        steps = steps[np.diff([self.metadata[row]["shot"] for row in views.rows]) == 0]
        shots = [each["shot"] for each in self.metadata] if self._joined is None else self._joined.tolist()
        camera = self.camera
        assert camera is not None
        source = camera if self.source_size is None else camera.resized(*self.source_size)
        return {
            "ok": all(each["ok"] for each in self.metadata),
            "method": self.method,
            "frames": len(self.metadata),
            "frames_ok": sum(each["ok"] for each in self.metadata),
            "frames_lost": [index for index, each in enumerate(self.metadata) if not each["ok"]],
            "shots": len(set(shots)),
            "frames_written": views.rows,
            "metric": views.metric,
            "scale_from": views.scale_from,
            "loops_closed": views.loops,
            "path_length": round(float(steps.sum()), 6),
            "points": points,
            "camera": {name: getattr(camera, name) for name in CAMERA_FIELDS},
            # Of the frames as they came: large ones are reduced for the maps.
            "source_camera": {name: getattr(source, name) for name in CAMERA_FIELDS},
            "messages": self.messages,
        }


class SessionViews(Sequence[View]):
    """The frames of a session as views, loaded from disk when they are read.

    Attributes:
        rows: numbers of the frames in the session.
        poses: (N, 4, 4) world_from_camera.
        scale_from: what the unit of length is from, see `Pointmaps`.
        metric: lengths are metres.
        loops: pairs of frames of one place that the path was corrected by.
    """

    def __init__(
        self, session: Session, rows: list[int], poses: np.ndarray, factors: np.ndarray, scale_from: str, loops: int = 0
    ) -> None:
        assert session.camera is not None
        self.session, self.rows, self.poses, self.factors = session, rows, poses, factors
        self.camera, self.scale_from = session.camera, scale_from
        self.metric, self.loops = scale_from != GUESS and session.given_metric, loops

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, key: int) -> View: ...
    @overload
    def __getitem__(self, key: slice) -> Sequence[View]: ...
    def __getitem__(self, key: int | slice) -> View | Sequence[View]:
        if isinstance(key, slice):
            return [self[index] for index in range(*key.indices(len(self)))]
        if not 0 <= key < len(self):
            raise IndexError(key)
        return self.load(key)[0]

    def load(self, index: int) -> tuple[View, np.ndarray, np.ndarray]:
        """A view, what moves in it (H, W) bool, and the confidence of its depth (H, W)."""
        row = self.rows[index]
        with np.load(self.session.folder / f"{row:06d}.npz") as stored:
            image, depth = stored["image"], stored["depth"] * np.float32(self.factors[index])
            dynamic, confidence = stored["dynamic"], stored["confidence"].astype(np.float32) / 255
        measured = self.session.metadata[row]["measured"]
        view = View(
            image=image, camera=self.camera, world_from_camera=self.poses[index], depth=depth,
            stamp_ns=round(self.session.metadata[row]["seconds"] * 1e9),
            estimated=None if measured else np.ones(depth.shape, bool),
            depth_confidence=None if measured else confidence, metric=self.metric,
        )  # fmt: skip
        return view, dynamic, confidence


@dataclass(frozen=True)
class _FrameCloud:
    points: np.ndarray
    colours: np.ndarray
    provenance: np.ndarray
    weight: np.ndarray
    confidence: np.ndarray
    depth_confidence: np.ndarray

    @classmethod
    def of(cls, view: View, dynamic: np.ndarray, confidence: np.ndarray) -> _FrameCloud:
        """The static points of one frame."""
        assert view.depth is not None
        known = (view.depth > 0) & ~dynamic
        points = unproject(view.depth, view.camera, view.world_from_camera)[known]
        ones = np.ones(len(points), np.float32)
        kind = np.full(len(points), np.uint8(Provenance.OBSERVED if view.estimated is None else Provenance.ESTIMATED))
        return cls(points, view.image[known], kind, ones, ones, confidence[known])
