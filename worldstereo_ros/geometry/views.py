"""Views: an image with its camera, pose, depth and provenance."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.utils.errors import InputError


@dataclass(frozen=True)
class View:
    """An image with its camera, pose, depth and provenance.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        camera: intrinsics for this image size.
        world_from_camera: (4, 4) float64, OpenCV axes (x right, y down, z forward), metres.
        depth: (H, W) float32 metres along the optical axis, 0 = unknown; None without a depth image.
        observed: (H, W) bool, True = seen by a camera and measured by a depth sensor. None for an observation: a sensor
            took the image, and its depth is measured except where `estimated` is True.
        stamp_ns: time of the measurement in nanoseconds; of an imagined view the time of the newest observation that
            it is based on.
        confidence: (H, W) float32 in 0..1, probability that the pixel's colour is right within
            `pipelines.confidence.COLOUR_TOLERANCE`; None if unavailable, as for every observation.
        estimated: (H, W) bool, True = seen by a camera, the distance is estimated by a model. None = nowhere.
        depth_confidence: (H, W) float32 in 0..1, probability that the depth is within a factor of
            `provenance.DEPTH_TOLERANCE` of the true one; None if unavailable.
        metric: lengths are in metres; False if their unit is arbitrary, as in reconstructions from images alone. Then
            "metres" above means that unit.
    """

    image: np.ndarray
    camera: Camera
    world_from_camera: np.ndarray
    depth: np.ndarray | None = None
    observed: np.ndarray | None = None
    stamp_ns: int = 0
    confidence: np.ndarray | None = None
    estimated: np.ndarray | None = None
    depth_confidence: np.ndarray | None = None
    metric: bool = True

    def __post_init__(self) -> None:
        shape = (self.camera.height, self.camera.width)
        if self.image.shape != (*shape, 3) or self.image.dtype != np.uint8:
            raise InputError(
                f"The image is {self.image.dtype} of shape {self.image.shape}; uint8 of shape {(*shape, 3)} was "
                f"expected for a camera of {shape[1]}x{shape[0]}. Resize the image and the camera together "
                "(View.resized)."
            )
        for name in ("depth", "observed", "confidence", "estimated", "depth_confidence"):
            array = getattr(self, name)
            if array is not None and array.shape != shape:
                raise InputError(f"The {name} has shape {array.shape}; {shape}, the image's size, was expected.")
        pose = np.asarray(self.world_from_camera, dtype=np.float64)
        if pose.shape != (4, 4) or not np.isfinite(pose).all():
            raise InputError(f"world_from_camera is not a finite 4x4 matrix; its shape is {pose.shape}.")
        object.__setattr__(self, "world_from_camera", pose)

    @property
    def is_observation(self) -> bool:
        """Whether a sensor took the image; False for an imagined view."""
        return self.observed is None

    @property
    def observed_mask(self) -> np.ndarray:
        """(H, W) bool, True = observed; for an observation all pixels whose depth is not estimated."""
        observed = np.ones(self.image.shape[:2], dtype=bool) if self.observed is None else self.observed
        return observed if self.estimated is None else observed & ~self.estimated

    @property
    def estimated_mask(self) -> np.ndarray:
        """(H, W) bool, True = seen by a camera, at a distance that a model estimated."""
        return np.zeros(self.image.shape[:2], dtype=bool) if self.estimated is None else self.estimated

    @property
    def provenance(self) -> np.ndarray:
        """(H, W) uint8 values of `Provenance`: imagined, estimated or observed.

        Pixels of an observation where the sensor measured nothing are *observed* too; their depth is 0, unknown.
        """
        out = np.where(self.observed_mask, np.uint8(Provenance.OBSERVED), np.uint8(Provenance.IMAGINED))
        if self.estimated is not None:
            out[self.estimated] = Provenance.ESTIMATED
        return out

    def with_finite_depth(self) -> View:
        """Returns the view with depth 0, unknown, where it is NaN or infinite (REP 118)."""
        if self.depth is None or np.isfinite(self.depth).all():
            return self
        depth = np.where(np.isfinite(self.depth), self.depth, 0).astype(self.depth.dtype, copy=False)
        return replace(self, depth=depth)

    def resized(self, width: int, height: int) -> View:
        """Returns the view at another image size.

        The image is resampled by area (linearly when enlarged), depth and masks by the nearest pixel.
        """
        import cv2

        if (width, height) == (self.camera.width, self.camera.height):
            return self
        downsampling = width < self.camera.width
        size = (width, height)

        def nearest(array: np.ndarray | None) -> np.ndarray | None:
            if array is None:
                return None
            out = cv2.resize(array.astype(np.float32), size, interpolation=cv2.INTER_NEAREST_EXACT)
            return out.astype(array.dtype)

        return replace(
            self,
            image=cv2.resize(self.image, size, interpolation=cv2.INTER_AREA if downsampling else cv2.INTER_LINEAR),
            camera=self.camera.resized(width, height),
            depth=nearest(self.depth),
            observed=nearest(self.observed),
            confidence=nearest(self.confidence),
            estimated=nearest(self.estimated),
            depth_confidence=nearest(self.depth_confidence),
        )

    def cropped(self, rows: slice, columns: slice) -> View:
        """Returns the part of the view in a window; the camera stays where it is.

        Args:
            rows, columns: the window in pixels, without a step, such as `imaging.borders.valid_area` returns.

        Raises:
            InputError: the window is empty or has a step.
        """
        (top, bottom, down), (left, right, across) = (
            rows.indices(self.camera.height),
            columns.indices(self.camera.width),
        )
        if down != 1 or across != 1 or bottom <= top or right <= left:
            raise InputError(f"The window {rows}, {columns} is no part of an image of shape {self.image.shape[:2]}.")
        arrays = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "world_from_camera"}
        layers: dict[str, Any] = {
            name: np.ascontiguousarray(array[top:bottom, left:right])
            for name, array in arrays.items()
            if isinstance(array, np.ndarray)
        }
        return replace(self, camera=self.camera.cropped(left, top, right - left, bottom - top), **layers)


@dataclass(frozen=True)
class ImaginedView(View):
    """A view that the world model generated, with its conditioning.

    Attributes:
        conditioning: (H, W, 3) uint8 RGB, the memory rendered at this pose: the input of the pipeline. Holes are
            mid-grey (128).
        covered: (H, W) bool, True where memory (observed, estimated or imagined) covers the pixel.
        index: position of this view on the path, from 0.
        count: number of views on the path.
        references: indices into the view bank of the views that were retrieved as references.
        blocked: the pose lies in a surface that was observed, or the path reaches it from the view before only through
            one (`memory.path_clearance`).
    """

    conditioning: np.ndarray | None = None
    covered: np.ndarray | None = None
    index: int = 0
    count: int = 1
    references: tuple[int, ...] = ()
    blocked: bool = False

    @property
    def coverage(self) -> float:
        """Fraction of pixels that memory covers, 0..1; NaN if `covered` is None."""
        return float("nan") if self.covered is None else float(self.covered.mean())

    @property
    def observed_fraction(self) -> float:
        """Fraction of observed pixels, 0..1."""
        return float(self.observed_mask.mean())

    @property
    def estimated_fraction(self) -> float:
        """Fraction of estimated pixels, 0..1."""
        return float(self.estimated_mask.mean())
