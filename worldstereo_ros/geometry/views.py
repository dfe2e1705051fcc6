"""What was seen, or imagined, from one place."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.utils.errors import InputError


@dataclass(frozen=True)
class View:
    """One picture with everything known about it.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        camera: intrinsics, for exactly this image size.
        world_from_camera: (4, 4) float64, OpenCV axes (x right, y down, z forward), metres.
        depth: (H, W) float32 metres along the optical axis, 0 = unknown; None where there is none at all.
        observed: (H, W) bool, True = the pixel shows what a sensor saw, False = imagined. None = all observed.
        stamp_ns: time of the measurement (or of the newest one an imagined view grew from), nanoseconds.
        confidence: (H, W) float32 in 0..1, probability that the pixel's colour is right within `confidence.TOLERANCE`
            (docs/confidence.md); None = nobody said, as of every view that a sensor took.
    """

    image: np.ndarray
    camera: Camera
    world_from_camera: np.ndarray
    depth: np.ndarray | None = None
    observed: np.ndarray | None = None
    stamp_ns: int = 0
    confidence: np.ndarray | None = None

    def __post_init__(self) -> None:
        shape = (self.camera.height, self.camera.width)
        if self.image.shape != (*shape, 3) or self.image.dtype != np.uint8:
            raise InputError(
                f"The image is {self.image.dtype} of shape {self.image.shape}; its camera says {shape[1]}x{shape[0]}, "
                "so uint8 of shape "
                f"{(*shape, 3)} was expected. Resize the image and the camera together (View.resized)."
            )
        for name in ("depth", "observed", "confidence"):
            array = getattr(self, name)
            if array is not None and array.shape != shape:
                raise InputError(f"The {name} has shape {array.shape}; the image's {shape} was expected.")
        pose = np.asarray(self.world_from_camera, dtype=np.float64)
        if pose.shape != (4, 4) or not np.isfinite(pose).all():
            raise InputError("world_from_camera must be a finite 4x4 matrix.")
        object.__setattr__(self, "world_from_camera", pose)

    @property
    def observed_mask(self) -> np.ndarray:
        """(H, W) bool, True = observed; all True for a view that came from a sensor."""
        if self.observed is None:
            return np.ones(self.image.shape[:2], dtype=bool)
        return self.observed

    def resized(self, width: int, height: int) -> View:
        """The same view at another size: colour by area, depth and masks by the nearest pixel (never blended)."""
        import cv2

        if (width, height) == (self.camera.width, self.camera.height):
            return self
        shrinks = width < self.camera.width
        size = (width, height)

        def nearest(array: np.ndarray | None) -> np.ndarray | None:
            if array is None:
                return None
            out = cv2.resize(array.astype(np.float32), size, interpolation=cv2.INTER_NEAREST_EXACT)
            return out.astype(array.dtype)

        return replace(
            self,
            image=cv2.resize(self.image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR),
            camera=self.camera.resized(width, height),
            depth=nearest(self.depth),
            observed=nearest(self.observed),
            confidence=nearest(self.confidence),
        )


@dataclass(frozen=True)
class ImaginedView(View):
    """A view the world model made, with what it grew from.

    Attributes:
        conditioning: (H, W, 3) uint8, what memory alone gives before the pipeline runs; holes are mid-grey.
        covered: (H, W) bool, True where memory (observed or imagined) gave the pixel.
        index: number of this view on the path, from 0.
        count: number of views asked for.
        references: indices into the view bank of the views that were retrieved for it.
    """

    conditioning: np.ndarray | None = None
    covered: np.ndarray | None = None
    index: int = 0
    count: int = 1
    references: tuple[int, ...] = ()

    @property
    def coverage(self) -> float:
        """Fraction of the pixels that memory covered, 0..1; NaN where nobody said (`covered` is None)."""
        return float("nan") if self.covered is None else float(self.covered.mean())

    @property
    def observed_fraction(self) -> float:
        """Fraction of the pixels that are observed, 0..1."""
        return float(self.observed_mask.mean())
