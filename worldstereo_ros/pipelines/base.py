"""The protocol of view-synthesis pipelines: memory's conditioning of a clip in, frames out.

All pipelines are interchangeable in `WorldModel`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.utils.errors import WorldStereoError

if TYPE_CHECKING:
    import torch

    from worldstereo_ros.rendering.splatting import Rendering

# Called as on_step(stage, step, steps) between steps; may raise Cancelled to stop.
OnStep = Callable[[str, int, int], None]


class Cancelled(Exception):  # noqa: N818 - a cancellation is not an error
    """Raised by an `on_step` callback to stop a pipeline between two steps."""


class ModelError(WorldStereoError, RuntimeError):
    """A model failed: bad weights, out of memory, or values that are not finite."""


@dataclass(frozen=True)
class Conditioning:
    """What memory holds about one clip of F views.

    Attributes:
        start_view: the view from which the clip starts: the observation that shows most of it, or the last view of the
            clip before.
        renders: the cloud memory rendered by the F cameras (colour, depth, covered, provenance).
        camera: intrinsics and size of the F views.
        world_from_camera: (F, 4, 4) poses of the F views, OpenCV axes, metres.
        references: distinct views of the bank, at most 8; all views of the bank for pipelines with
            `selects_references = True`.
        reference_index: (F,) index into `references` of the best one for each view, -1 = none.
        observations: all observations of the bank, whatever the pipeline gets as references.
        stored_confidence: (F, H, W, 2) float32 in 0..1, confidence of colour and of depth of the points that `renders`
            shows; None if memory holds observed points only.
        captures: observations that were chosen for this clip, in order; empty: the pipeline chooses by itself.
    """

    start_view: View
    renders: Rendering
    camera: Camera
    world_from_camera: np.ndarray
    references: list[View]
    reference_index: np.ndarray
    observations: list[View] = field(default_factory=list)
    stored_confidence: np.ndarray | None = None
    captures: list[View] = field(default_factory=list)


@dataclass(frozen=True)
class PipelineFrame:
    """One frame of a clip.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        depth: (H, W) float32 metres, 0 = unknown; None if the pipeline gives no depth.
        observed: (H, W) bool, True where the pixel shows what a camera saw and a sensor measured.
        memory_image: (H, W, 3) uint8 RGB, the view from memory alone; None if it equals `image`.
        confidence: (H, W) float32 in 0..1, see `confidence`; None: the world model estimates it.
        plane_absence: (H, W) float32 in 0..1, 1 - P(a plane of the layout is here), 0 where memory has a point that a
            camera saw; None if the pipeline does not estimate it.
        estimated: (H, W) bool, True where a camera saw the colour and a model estimated the distance; None = nowhere.
        depth_confidence: (H, W) float32 in 0..1, see `confidence`; None: the world model estimates it.
        far_confidence: (H, W) float32, confidence of the colour where the image shows what an observation saw in the
            same direction beyond the range of its sensor, 0 elsewhere; None = nowhere.
    """

    image: np.ndarray
    depth: np.ndarray | None
    observed: np.ndarray
    memory_image: np.ndarray | None = None
    confidence: np.ndarray | None = None
    plane_absence: np.ndarray | None = None
    estimated: np.ndarray | None = None
    depth_confidence: np.ndarray | None = None
    far_confidence: np.ndarray | None = None

    @property
    def seen(self) -> np.ndarray:
        """(H, W) bool, True where a camera saw the colour: observed or estimated."""
        return self.observed if self.estimated is None else self.observed | self.estimated


class Pipeline(Protocol):
    """Imagines the views of a clip.

    A pipeline may set `selects_references = True` to get all views of the bank as references.

    Attributes:
        name: name for logs and tables.
        clip_length: maximum number of views of one call; the world model splits longer paths into clips.
    """

    name: str
    clip_length: int

    def __call__(
        self, conditioning: Conditioning, *, prompt: str, generator: torch.Generator, on_step: OnStep
    ) -> Iterator[PipelineFrame]:
        """Yields the frames of the clip in order, each as soon as it exists.

        Args:
            conditioning: what memory holds about the clip.
            prompt: description of the place.
            generator: source of randomness.
            on_step: called as on_step(stage, step, steps) between steps; may raise `Cancelled`.
        """
        ...
