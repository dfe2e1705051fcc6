"""Sequences with a true other eye: rectified pairs, walks through procedural worlds, and real frames there and back."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from worldstereo_ros.evaluation.inputs import open_whole
from worldstereo_ros.evaluation.metrics import seen_pixels
from worldstereo_ros.evaluation.world_sequences import PREFIX, PosedSequence, WorldSequence, open_worlds
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.imaging.image_checks import ImageError
from worldstereo_ros.io.files import DatasetError, read_json
from worldstereo_ros.io.images import read_image
from worldstereo_ros.pipelines.stereo.pipeline import GeometricStereo
from worldstereo_ros.pipelines.stereo.settings import StereoSettings
from worldstereo_ros.pipelines.stereo.warp import warp_to_eye
from worldstereo_ros.scenes import Scene, add_moving_objects, render_scene
from worldstereo_ros.utils.errors import InputError

BASE_M = 0.12  # of worlds and of frames there and back
WORLD_FRAMES, POSED_FRAMES, STEP_S = 12, 16, 0.2
MOVING_OBJECTS = 3
DISPARITY_SCALE = 256.0
OTHER_EYE, THERE_AND_BACK = "other eye", "there and back"


@dataclass(frozen=True)
class TruthFrame:
    """One frame of the camera, and what the other eye truly sees.

    Attributes:
        image: (H, W, 3) uint8 RGB of the camera.
        depth: (H, W) float32 metres, measured; 0 = unknown, inf = sky; None if none was measured.
        world_from_camera: (4, 4).
        truth: (H, W, 3) uint8 RGB of the other eye.
        hole: (H, W) bool, True where the other eye sees what the camera does not; None if it is unknown.
        disparity: (H, W) float32 pixels of the left eye, NaN = unknown, without an offset; None if none was measured.
    """

    image: np.ndarray
    depth: np.ndarray | None
    world_from_camera: np.ndarray
    truth: np.ndarray
    hole: np.ndarray | None
    disparity: np.ndarray | None


@dataclass(frozen=True)
class StereoSequence:
    """Frames of one camera with a true other eye.

    Attributes:
        name: for tables.
        truth: what the truth is: the image of another camera, or the real frame after it was warped there and back.
        camera: intrinsics.
        settings: base, offset and eye of the true pair.
        frames: number of frames.
        load: gives a frame by its number.
        sensor_depth: depth was measured.
    """

    name: str
    truth: str
    camera: Camera
    settings: StereoSettings
    frames: int
    load: Callable[[int], TruthFrame]
    sensor_depth: bool = True


def open_stereo_data(data: str | Path, on_note: Callable[[str], None] | None = None) -> list[StereoSequence]:
    """Opens what `worldstereo evaluate --stereo --data` names.

    Args:
        data: a folder with left.png, right.png and calib.json (disparity.png is optional), a folder of such folders, a
            posed sequence with depth, a folder of such, or `worlds:SPLIT:COUNT`.
        on_note: called with sentences about damaged frames, and about damaged pairs of a folder; they are left out.

    Raises:
        InputError: it is none of these.
        DatasetError: a file is missing or contradicts another one, or nothing of a sequence or folder can be read.
    """
    if str(data).startswith(PREFIX):
        return [_world(sequence) for sequence in open_worlds(str(data))]
    path = Path(data)
    if is_pair(path):
        return [_pair(path)]
    pairs = sorted(folder for folder in path.glob("*") if is_pair(folder)) if path.is_dir() else []
    posed = []
    with suppress(InputError):
        posed = [sequence for sequence in open_whole(path, on_note) if not is_pair(Path(sequence.path))]
    found = _whole_pairs(path, pairs, on_note) + [_there_and_back(sequence) for sequence in posed]
    if not found and all((path / name).is_file() for name in ("left.png", "right.png")):
        raise InputError(
            f"{path} has left.png and right.png, but no calib.json; without the focal length and the distance of the "
            "cameras, no eye can be made at the place of the right one."
        )
    if not found:
        raise InputError(
            f"{path} has no stereo pair (left.png, right.png, calib.json) and no posed sequence with depth; one of "
            f"these, a folder of such, or {PREFIX}SPLIT:COUNT was expected."
        )
    return found


def is_pair(path: Path) -> bool:
    """Whether a folder holds a rectified pair with its calibration."""
    return all((path / name).is_file() for name in ("left.png", "right.png", "calib.json"))


def _whole_pairs(path: Path, folders: list[Path], on_note: Callable[[str], None] | None) -> list[StereoSequence]:
    """The pairs in a folder whose images can be read. Raises DatasetError if there are pairs, and all are damaged."""
    found, reasons = [], []
    for folder in folders:
        pair = _pair(folder)
        try:
            pair.load(0)
        except (DatasetError, ImageError) as error:
            reasons.append(str(error))
        else:
            found.append(pair)
    if reasons and not found:
        raise DatasetError(f"None of the {len(reasons)} pairs of {path} can be read. The first: {reasons[0]}")
    if reasons and on_note:
        on_note(
            f"{path.name}: {len(reasons)} of {len(folders)} pairs are damaged and left out. The first: {reasons[0]}"
        )
    return found


def _pair(path: Path) -> StereoSequence:
    content = read_json(path / "calib.json")
    try:
        camera = Camera(
            *(int(content[key]) for key in ("width", "height")),
            *(float(content[key]) for key in ("fx", "fy", "cx_left", "cy")),
        )
        base, offset = float(content["baseline_m"]), float(content.get("doffs", 0.0))
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(
            f"{path / 'calib.json'} has no usable {error}; width, height, fx, fy, cx_left, cy, baseline_m and doffs "
            "were expected."
        ) from None
    # doffs is the difference of the principal points: what has this disparity more lies on the screen.
    convergence = camera.fx * base / offset if offset > 0 else None
    settings = StereoSettings(base=base, convergence=convergence)
    measured = (path / "disparity.png").is_file()

    def load(index: int) -> TruthFrame:
        left, right = read_image(path / "left.png"), read_image(path / "right.png")
        for image in (left, right):
            if image.shape[:2] != (camera.height, camera.width):
                raise DatasetError(f"An image of {path} is of another size than calib.json says.")
        if not measured:
            return TruthFrame(left, None, np.eye(4), right, None, None)
        stored = cv2.imread(str(path / "disparity.png"), cv2.IMREAD_UNCHANGED)
        if stored is None or stored.dtype != np.uint16 or stored.shape != left.shape[:2]:
            raise DatasetError(f"{path / 'disparity.png'} is no 16-bit image of the size of left.png.")
        found = stored.astype(np.float32) / np.float32(DISPARITY_SCALE)
        disparity = np.where(stored > 0, found + np.float32(offset), np.float32(np.nan))
        known = disparity > 0
        depth = np.where(known, np.float32(camera.fx * base) / np.where(known, disparity, 1), 0).astype(np.float32)
        dense, _ = GeometricStereo(camera, settings).disparity_of(depth)
        hole = warp_to_eye(left, dense, offset=offset, edge_px=0).hole
        return TruthFrame(left, depth, np.eye(4), right, hole, disparity)

    return StereoSequence(path.name, OTHER_EYE, camera, settings, 1, load, measured)


def _world(sequence: WorldSequence) -> StereoSequence:
    scene, camera = _with_moving_objects(sequence.scene), sequence.camera
    poses = sequence.poses[:WORLD_FRAMES]
    settings = StereoSettings(base=BASE_M)

    def load(index: int) -> TruthFrame:
        pose = poses[index]
        other = pose.copy()
        other[:3, 3] += BASE_M * pose[:3, 0]
        times = np.full(2, index * STEP_S)
        rendered = render_scene(scene, camera, np.stack([pose, other]), supersample=2, times=times)
        images, depths = rendered.image.cpu().numpy(), rendered.depth.cpu().numpy()
        sky = depths[1] == 0
        seen = seen_pixels(View(images[1], camera, other, depths[1]), [View(images[0], camera, pose, depths[0])])
        depth = np.where(depths[0] > 0, depths[0], np.float32(np.inf))
        disparity = np.float32(camera.fx * BASE_M) / depth
        return TruthFrame(images[0], depth, pose, images[1], ~seen & ~sky, disparity)

    return StereoSequence(str(sequence.path), OTHER_EYE, camera, settings, len(poses), load)


def _with_moving_objects(scene: Scene) -> Scene:
    """The scene with as many moving objects as find room, up to `MOVING_OBJECTS`."""
    for count in range(MOVING_OBJECTS, 0, -1):
        with suppress(InputError):
            return add_moving_objects(scene, count)
    return scene


def _there_and_back(sequence: PosedSequence) -> StereoSequence:
    """Real frames, warped to a made right eye, which is the camera of the evaluation; the frame itself is the truth.

    These are the pairs that SpatialDreamer trains on.
    """
    camera = sequence.camera
    rows = np.unique(np.linspace(0, len(sequence) - 1, min(len(sequence), POSED_FRAMES)).round().astype(int))
    first = GeometricStereo(camera, StereoSettings(base=BASE_M, memory=0, steady=False, soft_edges=False))
    settings = StereoSettings(base=BASE_M, eye="left")

    def load(index: int) -> TruthFrame:
        view = sequence[int(rows[index])].with_finite_depth()
        if view.depth is None:
            raise DatasetError(f"Frame {rows[index]} of {sequence.path} has no depth.")
        frame = first.make(view.image, view.depth)
        pose = view.world_from_camera.copy()
        pose[:3, 3] += BASE_M * pose[:3, 0]
        with np.errstate(divide="ignore"):
            depth = (np.float32(camera.fx * BASE_M) / frame.disparity).astype(np.float32)
        back = warp_to_eye(frame.image, frame.disparity, eye="left", edge_px=0)
        known = view.depth > 0
        disparity = np.where(known, np.float32(camera.fx * BASE_M) / np.where(known, view.depth, 1), np.nan)
        return TruthFrame(frame.image, depth, pose, view.image, back.hole, disparity.astype(np.float32))

    return StereoSequence(sequence.path.name, THERE_AND_BACK, camera, settings, len(rows), load)
