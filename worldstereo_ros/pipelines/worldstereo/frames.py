"""Frames of a clip: each image of the transformer, composed with memory, with planes in its holes, sky and depth."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from worldstereo_ros.depth.estimators import DepthEstimator
from worldstereo_ros.geometry.views import View
from worldstereo_ros.imaging.inpainting import fill_depth
from worldstereo_ros.imaging.resizing import resize_image
from worldstereo_ros.models.hole_refiner import HoleRefiner
from worldstereo_ros.pipelines.base import Conditioning, PipelineFrame
from worldstereo_ros.pipelines.geometric.coincidence import coincident_imagination
from worldstereo_ros.pipelines.geometric.far_view import far_pixels, show_far
from worldstereo_ros.pipelines.geometric.layout import Layout
from worldstereo_ros.pipelines.geometric.pipeline import GeometricPipeline
from worldstereo_ros.pipelines.geometric.warped_view import WarpedView
from worldstereo_ros.pipelines.worldstereo.compositing import compose, mix_with_memory
from worldstereo_ros.pipelines.worldstereo.imagined_depth import complete_frame, render_planes
from worldstereo_ros.pipelines.worldstereo.refinement import fill_frame


@dataclass(frozen=True)
class FrameMaker:
    """Makes the frames of one clip; several threads may call it.

    Attributes:
        conditioning: what memory holds about the clip.
        geometric: warps views from memory and labels their provenance.
        warped_views: the views as warped from memory; None: they are warped here, if they are needed.
        shows_memory: the transformer's images continue what memory shows, so that they are mixed with it.
        compose_observed: pixels that a camera saw come from memory; else all are the transformer's.
        layout: of the place; None: no planes.
        fill: what holes show, `smooth` or `planes`.
        refiner: refines holes with planes; None: planes as they are.
        depth: estimates depth of imagined pixels; None: depth is filled smoothly from memory.
        seed: chooses the details of planes.
    """

    conditioning: Conditioning
    geometric: GeometricPipeline
    warped_views: list[WarpedView] | None
    shows_memory: bool
    compose_observed: bool
    layout: Layout | None
    fill: str
    refiner: HoleRefiner | None
    depth: DepthEstimator | None
    seed: int

    def make(self, index: int, image: np.ndarray, threads: int) -> PipelineFrame:
        """The frame of a view.

        Args:
            index: index of the view in the clip.
            image: (h, w, 3) uint8 of the transformer, at any size.
            threads: number of threads to use.
        """
        conditioning, layout = self.conditioning, self.layout
        warped = self._warped(index, threads)
        frame = self._frame_of_memory(index, warped, threads)
        image = resize_image(image, frame.image.shape[1], frame.image.shape[0], enlarge=cv2.INTER_CUBIC)
        past = self._imagined_before(index, frame)
        mixes = warped is not None and self.shows_memory and self.compose_observed
        if past is not None:
            image = past.image
        elif warped is not None and mixes:
            image = mix_with_memory(image, warped, conditioning, index)
        composed = compose(frame, image)
        planes = None
        if layout is not None:
            planes = render_planes(composed, conditioning, index, layout, threads)
            if self.fill == "planes" and warped is not None and mixes and past is None:
                inputs = (composed, warped, conditioning, index, layout, planes, self.refiner)
                composed = fill_frame(*inputs, seed=self.seed, threads=threads)
        far = None
        if layout is not None and planes is not None and self.fill == "planes":
            far = far_pixels(layout, conditioning, index, planes, composed.seen)
            composed = show_far(composed, far)
        # The depth network sees more in the filled image.
        detected = 0 if layout is None else layout.detected
        composed = complete_frame(composed, conditioning, index, planes, self.depth, detected=detected)
        if far is not None and composed.depth is not None:  # no length is known of what is far
            composed = replace(composed, depth=np.where(far.found, np.float32(0), composed.depth))
        has_memory_image = self.compose_observed or self.shows_memory
        return composed if has_memory_image else replace(composed, memory_image=None)

    def _warped(self, index: int, threads: int) -> WarpedView | None:
        if self.warped_views is not None:
            return self.warped_views[index]
        if self.shows_memory or self.compose_observed:
            return self.geometric.warp(self.conditioning, index, threads=threads)
        return None

    def _imagined_before(self, index: int, frame: PipelineFrame) -> View | None:
        """The view as it was imagined from this pose before; None if there is none, or more is known of it by now."""
        if not self.compose_observed:
            return None
        camera, pose = self.conditioning.camera, self.conditioning.world_from_camera[index]
        return coincident_imagination(self.conditioning.references, camera, pose, frame.seen)

    def _frame_of_memory(self, index: int, warped: WarpedView | None, threads: int) -> PipelineFrame:
        """A view from memory alone. If nothing of it is composited, only its depth matters."""
        if self.compose_observed and warped is not None:
            return self.geometric.label_provenance(self.conditioning, index, warped, threads=threads)
        rendered = self.conditioning.renders.depth[index].cpu().numpy()
        depth = fill_depth(rendered) if warped is None else warped.depth
        image = np.zeros((*depth.shape, 3), np.uint8) if warped is None else warped.image
        return PipelineFrame(image, depth, np.zeros(depth.shape, bool))
