"""What every pipeline is: a callable that turns what memory gives into pictures. All pipelines are interchangeable."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.utils.errors import WorldStereoError

if TYPE_CHECKING:
    import torch

    from worldstereo_ros.rendering.splatting import Rendering

# Called as on_step(stage, step, steps) between steps; it may raise Cancelled to stop the work.
OnStep = Callable[[str, int, int], None]


class Cancelled(Exception):  # noqa: N818 - a cancellation is no error
    """Raised by an `on_step` callback to end the work between two steps."""


class ModelError(WorldStereoError, RuntimeError):
    """The model could not do its work: weights, memory of the device, or numbers that are not finite."""


@dataclass(frozen=True)
class Conditioning:
    """All that memory says about one clip of F views.

    Attributes:
        start_view: the view that a sensor took which shows most of the clip, or the last view of the clip before.
        renders: the cloud memory seen from the F cameras (colour, depth, covered, observed).
        camera: intrinsics of the F views.
        world_from_camera: (F, 4, 4) poses of the F views.
        references: distinct views of the bank, at most 8, with depth where they have it. All views of the bank for a
            pipeline that says `selects_references = True`.
        reference_index: (F,) index into `references` of the best one for each view, -1 = none.
    """

    start_view: View
    renders: Rendering
    camera: Camera
    world_from_camera: np.ndarray
    references: list[View]
    reference_index: np.ndarray


@dataclass(frozen=True)
class PipelineFrame:
    """One finished picture.

    Attributes:
        image: (H, W, 3) uint8.
        depth: (H, W) float32 metres, 0 = unknown; None where the pipeline has no notion of depth.
        observed: (H, W) bool, True = this pixel shows what a sensor saw.
        memory_image: (H, W, 3) uint8, what memory alone gives; None where `image` is the same.
        confidence: (H, W) float32 in 0..1, see `confidence.py`; None = the world model works it out.
        plane_absence: (H, W) float32 in 0..1, 1 - P(a known plane extends here), 0 where memory covers the pixel;
            None where the pipeline does not estimate it.
    """

    image: np.ndarray
    depth: np.ndarray | None
    observed: np.ndarray
    memory_image: np.ndarray | None = None
    confidence: np.ndarray | None = None
    plane_absence: np.ndarray | None = None


class Pipeline(Protocol):
    """Imagines the views of a clip.

    Attributes:
        name: for logs and tables.
        clip_length: the most views one call takes; a longer path is split into clips that share the memory.
    """

    name: str
    clip_length: int

    def __call__(
        self, conditioning: Conditioning, *, prompt: str, generator: torch.Generator, on_step: OnStep
    ) -> Iterator[PipelineFrame]:
        """Yields the frames of the clip in order, each as soon as it exists."""
        ...
