"""The other eye by geometry: warp, then what other frames saw, then the background's side, then edges on top.

A network may then repaint what is left, see `painting`; of other pixels, only edges that mix with it change by
it. The steadied mask `band` of the holes and the source of each pixel are in the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.imaging.inpainting import fill_depth
from worldstereo_ros.pipelines.stereo.background import fill_background
from worldstereo_ros.pipelines.stereo.narrow_gaps import fill_narrow_gaps
from worldstereo_ros.pipelines.stereo.recall import FrameMemory, SeenFrame
from worldstereo_ros.pipelines.stereo.settings import GEOMETRIC, MAX_DISPARITY, StereoSettings
from worldstereo_ros.pipelines.stereo.soft_edges import DrawnEdges, draw_edges, split_edges
from worldstereo_ros.pipelines.stereo.sparse_depth import is_sparse, spread_disparity
from worldstereo_ros.pipelines.stereo.steadying import FlowLink, flow_image, steady_mask, steady_painting
from worldstereo_ros.pipelines.stereo.warp import WarpedEye, warp_to_eye
from worldstereo_ros.utils.errors import InputError

# Values of `StereoFrame.source`: seen now by the camera, seen in another frame, painted.
SEEN, REMEMBERED, PAINTED = 255, 128, 0
MIN_MOTION_BASES, MIN_TURN_RAD = 0.5, 0.035  # between remembered frames; closer ones take each other's place
MAX_FRAMES_APART = 10  # a frame is remembered after so many, however still the camera is: things move


@dataclass(frozen=True)
class StereoFrame:
    """One frame of both eyes.

    Attributes:
        camera_image: (H, W, 3) uint8 RGB, the eye that the camera took, unchanged.
        image: (H, W, 3) uint8 RGB, the made eye.
        disparity: (H, W) float32 pixels between the eyes, in the made eye, without the offset of converged eyes.
        source: (H, W) uint8, `SEEN`, `REMEMBERED` or `PAINTED`: where each pixel of the made eye comes from.
        band: (H, W) bool, the holes of the warp, made steady over time: what a network may repaint. It holds all
            remembered and painted pixels, and some seen ones.
        clamped: fraction of the pixels so near that their disparity is limited.
        eye: which eye `image` is, right or left.
    """

    camera_image: np.ndarray
    image: np.ndarray
    disparity: np.ndarray
    source: np.ndarray
    band: np.ndarray
    clamped: float
    eye: str

    @property
    def left(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB of the left eye."""
        return self.image if self.eye == "left" else self.camera_image

    @property
    def right(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB of the right eye."""
        return self.image if self.eye == "right" else self.camera_image


class HolePainter(Protocol):
    """Repaints what was painted by geometry."""

    name: str

    def paint(
        self, camera_image: np.ndarray, eye: WarpedEye, painted: np.ndarray, remembered: np.ndarray, *, left: bool,
        offset: float,
    ) -> np.ndarray:  # fmt: skip
        """Returns the made eye (H, W, 3) uint8; only pixels of `painted` differ from the given one."""

    def restart(self) -> None:
        """Forgets all frames."""


@dataclass
class _Previous:
    """What the frame before left behind: its eye, its holes, and its grey image for flow."""

    image: np.ndarray
    hole: np.ndarray
    grey: np.ndarray


class GeometricStereo:
    """Makes the other eye of the frames of one camera, in order.

    Not thread-safe: use it from one thread.

    Attributes:
        camera: intrinsics of all frames.
        settings: what the pair is to be like.
        painter: repaints what no frame has seen; None: nothing does.
        memory: the past frames of this shot.
    """

    def __init__(
        self, camera: Camera, settings: StereoSettings | None = None, *, painter: HolePainter | None = None
    ) -> None:
        """Creates a pipeline that remembers nothing yet.

        Args:
            camera: intrinsics of all frames.
            settings: see `StereoSettings`; None: its defaults.
            painter: see `painting.load_painter`.
        """
        self.camera, self.settings, self.painter = camera, settings or StereoSettings(), painter
        self.memory = FrameMemory(self.settings.memory)
        self._previous: _Previous | None = None
        self._since_kept = 0

    @property
    def name(self) -> str:
        """For file descriptions and tables."""
        return GEOMETRIC if self.painter is None else self.painter.name

    def restart(self) -> None:
        """Forgets all frames, as at a cut between two shots."""
        self.memory.clear()
        if self.painter is not None:
            self.painter.restart()
        self._previous, self._since_kept = None, 0

    def make(self, image: np.ndarray, depth: np.ndarray, world_from_camera: np.ndarray | None = None) -> StereoFrame:
        """Makes the other eye of the next frame.

        Args:
            image: (H, W, 3) uint8 RGB.
            depth: (H, W) float32 metres along the optical axis; 0 = unknown, filled smoothly from the background, or
                from the nearest pixels where few are known; inf = infinitely far, as sky.
            world_from_camera: (4, 4) pose; None if it is unknown: then no other frame can fill holes.

        Raises:
            InputError: an array does not fit the camera.
        """
        camera, settings = self.camera, self.settings
        shape = (camera.height, camera.width)
        if image.shape != (*shape, 3) or depth.shape != shape:
            raise InputError(
                f"The image has shape {image.shape} and the depth {depth.shape}; {(*shape, 3)} and {shape}, the "
                "camera's size, were expected."
            )
        disparity, clamped = self.disparity_of(depth, image)
        focal_base, offset = settings.focal_base(camera.fx), settings.offset(camera.fx)
        warped, edges = self._warp(image, disparity, offset)
        hole = warped.hole
        source = np.where(hole, np.uint8(PAINTED), np.uint8(SEEN))
        filled = warped
        if world_from_camera is not None:
            sign = 1.0 if settings.eye == "right" else -1.0
            world_from_eye = np.array(world_from_camera, np.float64)
            world_from_eye[:3, 3] += world_from_eye[:3, 0] * sign * settings.effective_base
            filled, found = self.memory.recall(
                warped, camera, world_from_eye, disparity,
                focal_base=focal_base, offset=offset, sign=sign, threads=settings.threads,
            )  # fmt: skip
            source[found] = REMEMBERED
            hole = hole | found
        filled = fill_background(filled, threads=settings.threads)
        if edges is not None:
            source[edges.owned] = SEEN
            hole = hole & ~edges.owned
        out, band, shown = filled.image, hole, filled.disparity
        if self.painter is not None:
            out = self.painter.paint(
                image, filled, source == PAINTED, source == REMEMBERED, left=settings.eye == "left", offset=offset
            )
        if edges is not None:
            out, shown = edges.mix(out), np.where(edges.owned, edges.disparity, filled.disparity)
        if settings.steady:
            out, band = self._steady(out, hole, source)
        if world_from_camera is not None and settings.memory:
            if is_sparse(depth > 0):  # few points would leave speckles
                with np.errstate(divide="ignore"):
                    depth = np.float32(focal_base) / disparity
            seen = np.ascontiguousarray(image), np.ascontiguousarray(depth, np.float32)
            self._remember(SeenFrame(*seen, np.asarray(world_from_camera, np.float64)))
        return StereoFrame(image, out, shown, source, band, clamped, settings.eye)

    def state(self) -> dict[str, np.ndarray]:
        """What it remembers, as arrays, to resume later as if nothing had happened.

        A painter forgets its frames, so that an uninterrupted and a resumed one give the same result.
        """
        if self.painter is not None:
            self.painter.restart()
        state = {"since_kept": np.array(self._since_kept), "frames": np.array(len(self.memory))}
        for index, frame in enumerate(self.memory.frames):
            arrays = {"image": frame.image, "depth": frame.depth, "pose": frame.world_from_camera}
            state |= {f"{name}{index}": array for name, array in arrays.items()}
        if (before := self._previous) is not None:
            state |= {"eye": before.image, "hole": before.hole, "grey": before.grey}
        return state

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Resumes from a `state` of a pipeline of the same camera and settings."""
        self.restart()
        self._since_kept = int(state["since_kept"])
        for index in range(int(state["frames"])):
            self.memory.add(SeenFrame(state[f"image{index}"], state[f"depth{index}"], state[f"pose{index}"]))
        if "eye" in state:
            self._previous = _Previous(state["eye"], state["hole"], state["grey"])

    def disparity_of(self, depth: np.ndarray, image: np.ndarray | None = None) -> tuple[np.ndarray, float]:
        """Disparity of a depth image.

        Args:
            depth: see `make`.
            image: (H, W, 3) uint8, by which narrow gaps are filled; None: as wide ones.

        Returns:
            ((H, W) float32 pixels, fraction of the pixels whose disparity is limited to `MAX_DISPARITY`).
        """
        depth = np.asarray(depth, np.float32)
        known, focal_base = depth > 0, np.float32(self.settings.focal_base(self.camera.fx))
        sparse = not known.all() and is_sparse(known)
        if not known.all() and not sparse:
            if image is not None:
                with np.errstate(divide="ignore"):
                    raw = np.where(known, focal_base / depth, np.float32(0)).astype(np.float32, copy=False)
                closed, found = fill_narrow_gaps(raw, known, image, threads=self.settings.threads)
                with np.errstate(divide="ignore"):
                    depth = np.where(found & ~known, focal_base / closed, depth)
            far = np.isinf(depth)
            depth = fill_depth(np.where(far, np.float32(0), depth))
            depth[far] = np.inf
        with np.errstate(divide="ignore"):
            disparity = np.where(depth > 0, focal_base / depth, 0)
        if sparse:
            disparity = spread_disparity(disparity, known)
        limit = np.float32(MAX_DISPARITY * self.camera.width)
        clamped = float((disparity > limit).mean())
        return np.minimum(disparity, limit).astype(np.float32, copy=False), clamped

    def _warp(self, image: np.ndarray, disparity: np.ndarray, offset: float) -> tuple[WarpedEye, DrawnEdges | None]:
        """(the eye with its holes, the edges to mix into it once they are filled)."""
        settings = self.settings
        if not settings.soft_edges:
            eye = warp_to_eye(
                image, disparity, eye=settings.eye, offset=offset, edge_px=settings.edge_px, threads=settings.threads
            )
            return eye, None
        layers = split_edges(image, disparity, threads=settings.threads)
        eye = warp_to_eye(
            layers.image, layers.disparity, eye=settings.eye, offset=offset, edge_px=0,
            near_end=layers.near_end(),
            threads=settings.threads,
        )  # fmt: skip
        drawn = draw_edges(layers, eye, disparity, side=settings.eye, offset=offset, threads=settings.threads)
        return eye, drawn

    def _steady(self, image: np.ndarray, hole: np.ndarray, source: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(image with steady holes, steady mask)."""
        grey, band, before = flow_image(image), hole, self._previous
        if before is not None:
            link = FlowLink(before.grey, grey, (image.shape[1], image.shape[0]))
            band = steady_mask(hole, before.hole, link)
            image = steady_painting(image, before.image, source == PAINTED, source == REMEMBERED, link)
        self._previous = _Previous(image, hole, grey)
        return image, band

    def _remember(self, frame: SeenFrame) -> None:
        """Adds a frame; frames from almost the same place take the place of each other."""
        frames = self.memory.frames
        if len(frames) >= 2:
            last, before = frames[-1].world_from_camera, frames[-2].world_from_camera
            moved = float(np.linalg.norm(last[:3, 3] - before[:3, 3]))
            cosine = (np.trace(last[:3, :3].T @ before[:3, :3]) - 1) / 2
            turned = float(np.arccos(np.clip(cosine, -1, 1)))
            close = moved < MIN_MOTION_BASES * self.settings.effective_base and turned < MIN_TURN_RAD
            if close and self._since_kept < MAX_FRAMES_APART:
                frames.pop()
                self._since_kept += 1
            else:
                self._since_kept = 0
        self.memory.add(frame)
