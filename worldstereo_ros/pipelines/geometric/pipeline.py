"""The geometric pipeline, without weights: geometry from the cloud, colours from the references, smooth fills.

A view from the very pose of an observation is the image of that observation (`coincidence.py`). Every other view:

1. The rendered cloud gives the depth. Where memory has an image but no depth (glass, screens, distant walls), completed
   depth of the references is warped into the view; the rest is filled smoothly, background first.
2. Every reference is looked up at that depth, after exposure alignment (`imaging/exposure.py`). Look-ups are weighted
   by angle, resolution, and distance from image borders and depth edges, and only count if the reference's depth
   agrees.
3. What no reference shows is filled smoothly from its surroundings, background first; with `fill="planes"`, it shows
   the planes of the place, also those of a room that no view saw whole (`plane_fill.py`).
4. Pixels are labelled as observed by the rules of `provenance.py`, as estimated by those of `estimated.py`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import cv2
import numpy as np
import torch

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.imaging.exposure import apply_gain
from worldstereo_ros.imaging.inpainting import background_weight, fill_depth, push_pull
from worldstereo_ros.imaging.overlap import DEPTH_TOLERANCE_M, DEPTH_TOLERANCE_RATIO
from worldstereo_ros.imaging.surface_depth import DepthSource, refine_depth
from worldstereo_ros.imaging.warping import gather_rows, normalise_rows, pixel_transform, splat_depth
from worldstereo_ros.pipelines.base import Conditioning, OnStep, PipelineFrame
from worldstereo_ros.pipelines.geometric.coincidence import coincident_observation
from worldstereo_ros.pipelines.geometric.estimated import estimated_pixels
from worldstereo_ros.pipelines.geometric.layout import Layout, LayoutEstimator
from worldstereo_ros.pipelines.geometric.line_continuation import continue_lines
from worldstereo_ros.pipelines.geometric.plane_fill import WORKING_PIXELS, draw_planes
from worldstereo_ros.pipelines.geometric.provenance import observed_pixels
from worldstereo_ros.pipelines.geometric.references import (
    MAX_PARALLAX_PX,
    Reference,
    ReferenceCache,
    select_references,
    supporting_view,
)
from worldstereo_ros.pipelines.geometric.warped_view import WarpedView
from worldstereo_ros.rendering.splatting import Rendering
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.utils.jit import run_in_threads, split_range

COMPLETED_TOLERANCE = 0.15  # relative difference within which depths that were completed, not measured, agree
BORDER_FEATHER_PX = 24.0  # over which the weight of a reference rises from its image border
ANGLE_SHARPNESS = 30.0  # of the weight against the angle between lines of sight: a quarter at 15 degrees
PRIOR_WEIGHT = 0.2  # of the mean colour of the references, in smooth fills
SPECKLE_WINDOW_PX, MIN_SPECKLE_COVERAGE = 9, 0.35  # points that cover less of the window around them are removed
GAP_PX = 12.0  # between the discs of a surface seen from close by, in a view of `WORKING_PIXELS`
FILLS = ("smooth", "planes")
# A plane's depth is that of the view if it is at least this likely, and within this factor of the smooth fill.
MIN_DEPTH_PROBABILITY, MAX_DEPTH_RATIO = 0.4, 1.5
EXPOSURE_POWER = 2.0  # of a reference's share of the image, in the exposure of the image


def _default_threads() -> int:
    """As many as the environment allows libraries, so that one process of many keeps to its core."""
    allowed = os.environ.get("OMP_NUM_THREADS", "")
    cores = int(allowed) if allowed.isdecimal() and int(allowed) > 0 else os.cpu_count() or 1
    return min(4, cores)


class GeometricPipeline:
    """Imagines views from memory alone; see the module. The same seed gives the same views; the prompt is not used.

    Attributes:
        threads: number of threads that one view may use.
        fill: what holes show, one of `FILLS`.
    """

    name = "geometric"
    clip_length = 1
    selects_references = True

    def __init__(self, *, align: bool = True, threads: int | None = None, fill: str = "smooth") -> None:
        """Creates the pipeline.

        Args:
            align: align the exposure of the references.
            threads: number of threads that one view may use; None: that of OMP_NUM_THREADS, else of cores, at most 4.
            fill: what holes show: `smooth` (a smooth fill, the mean of what may be there) or `planes`.

        Raises:
            InputError: the fill is unknown.
        """
        if fill not in FILLS:
            raise InputError(f"The fill '{fill}' is unknown; one of {', '.join(FILLS)} was expected.")
        self.fill = fill
        self._estimate_layout = LayoutEstimator()
        self.threads = _default_threads() if threads is None else threads
        self._cache = ReferenceCache(align=align)
        self._lock = threading.Lock()  # of the cache: views may be warped in several threads

    def __call__(
        self, conditioning: Conditioning, *, prompt: str, generator: torch.Generator, on_step: OnStep
    ) -> Iterator[PipelineFrame]:
        """Yields the frames of the clip in order, each as soon as it exists.

        Args:
            conditioning: what memory holds about the clip.
            prompt: not used.
            generator: chooses the details that planes show; nothing else is random.
            on_step: called as on_step("warping", index, count) before each view; may raise `Cancelled`.
        """
        count = len(conditioning.world_from_camera)
        layout = self._estimate_layout(conditioning.references) if self.fill == "planes" else None
        for index in range(count):
            on_step("warping", index, count)
            warped = self.warp(conditioning, index)
            frame = self.label_provenance(conditioning, index, warped)
            if layout is not None and warped.coincident is None:
                frame = self._with_planes(frame, warped, conditioning, index, layout, generator.initial_seed())
            yield frame

    def _with_planes(
        self,
        frame: PipelineFrame,
        warped: WarpedView,
        conditioning: Conditioning,
        index: int,
        layout: Layout,
        seed: int,
    ) -> PipelineFrame:
        """The frame with planes in its holes, as far as they are likely."""
        camera, pose = conditioning.camera, conditioning.world_from_camera[index]
        seen = frame.seen
        known = seen | warped.valid_mask
        image, fill = draw_planes(
            *(frame.image, known, warped.depth, layout, camera, pose), seed=seed, threads=self.threads
        )
        image = continue_lines(image, known, warped.depth, fill.depth, conditioning.observations, camera, pose)
        likely = (fill.depth > 0) & (fill.probability > MIN_DEPTH_PROBABILITY)
        # Confidence of depth is fitted with smooth fills: a plane that is far from those would be trusted too much.
        agrees = (fill.depth < MAX_DEPTH_RATIO * warped.depth) & (warped.depth < MAX_DEPTH_RATIO * fill.depth)
        return replace(
            frame,
            image=image,
            depth=np.where(likely & agrees, fill.depth, warped.depth),
            memory_image=warped.image,
        )

    def warp_all(self, conditioning: Conditioning, on_step: OnStep, *, divisor: int = 1) -> list[WarpedView]:
        """Warps all views of a clip in several threads, for pipelines that need them all before they start.

        Args:
            conditioning: what memory holds about the clip.
            on_step: called before each result is awaited; if it raises, no further view is started.
            divisor: warp views of this fraction of the width and height.
        """
        if divisor > 1:
            conditioning = _reduced(conditioning, divisor)
        count = len(conditioning.world_from_camera)
        with ThreadPoolExecutor(self.threads) as pool:
            futures = [pool.submit(self.warp, conditioning, index, threads=1) for index in range(count)]
            try:
                warped_views = []
                for index, future in enumerate(futures):
                    on_step("warping", index, count)
                    warped_views.append(future.result())
                return warped_views
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def warp(self, conditioning: Conditioning, index: int, *, threads: int | None = None) -> WarpedView:
        """Warps the references into one view. May be called from several threads.

        Args:
            conditioning: what memory holds about the clip.
            index: index of the view in the clip.
            threads: number of threads to use; None: `self.threads`.
        """
        renders, pose = conditioning.renders, conditioning.world_from_camera[index]
        depth = renders.depth[index].cpu().numpy().astype(np.float32, copy=False)
        colour = renders.colour[index].cpu().numpy()
        views = select_references(conditioning.references, depth, conditioning.camera, pose)
        if not all(view.is_observation for view in views):
            # Imagined views come in addition: an observation that they displace could not support what it observed.
            observations = [view for view in conditioning.references if view.is_observation]
            seen = select_references(observations, depth, conditioning.camera, pose)
            views = [*seen, *(view for view in views if not view.is_observation)]
        with self._lock:
            references, gains, registration = self._cache.prepare(views, conditioning.references)
        threads = threads or self.threads
        closed = _exact_depth(depth, conditioning.camera, pose, references, threads)
        depth = np.where(depth > 0, closed, np.float32(0))
        coincident = coincident_observation(conditioning.references, conditioning.camera, pose)
        if coincident is not None:
            completed = _complete_depth(closed, conditioning.camera, pose, references)
            if coincident.depth is not None:
                completed = np.where(coincident.depth > 0, coincident.depth, completed).astype(np.float32, copy=False)
            everywhere = np.ones(depth.shape, bool)
            image = coincident.image.copy()
            return WarpedView(image, everywhere, completed, depth, references, registration, coincident)
        image, valid, filled = self._warp(closed, depth, colour, conditioning.camera, pose, references, gains, threads)
        return WarpedView(image, valid, filled, depth, references, registration)

    def label_provenance(
        self, conditioning: Conditioning, index: int, warped: WarpedView, *, threads: int | None = None
    ) -> PipelineFrame:
        """The warped view as a frame, with its observed and its estimated pixels labelled.

        Args:
            conditioning: what memory holds about the clip.
            index: index of the view in the clip.
            warped: the result of `warp`.
            threads: number of threads to use; None: `self.threads`.
        """
        threads = threads or self.threads
        if warped.coincident is not None:
            source = warped.coincident
            measured = (source.depth > 0) & source.observed_mask if source.depth is not None else ~warped.valid_mask
            return PipelineFrame(warped.image, warped.depth, measured, estimated=~measured)
        camera, pose = conditioning.camera, conditioning.world_from_camera[index]
        supporting_views = [
            supporting_view(reference, float(error), bool(checked))
            for reference, error, checked in zip(
                warped.references, warped.registration.errors, warped.registration.checked, strict=True
            )
            if reference.view.is_observation  # an imagined view is not evidence of what was observed
        ]
        renders = conditioning.renders
        provenance = renders.provenance[index].cpu().numpy()
        observed, estimated = provenance == Provenance.OBSERVED, provenance == Provenance.ESTIMATED
        observed = observed_pixels(
            warped.rendered_depth,
            observed,
            camera,
            pose,
            supporting_views,
            threads,
            poses_known=warped.registration.known,
        )
        estimated = estimated_pixels(warped, estimated, observed, camera, pose, threads)
        return PipelineFrame(warped.image, warped.depth, observed, estimated=estimated)

    def _warp(
        self,
        closed: np.ndarray,
        rendered: np.ndarray,
        colour: np.ndarray,
        camera: Camera,
        pose: np.ndarray,
        references: list[Reference],
        gains: np.ndarray,
        threads: int,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Image (H, W, 3) uint8, valid mask (H, W) bool (False = smooth fill), and depth (H, W) float32."""
        depth = _complete_depth(closed, camera, pose, references)
        measured = np.zeros((*depth.shape, 5), np.float32)
        assumed = np.zeros_like(measured)
        contributions = np.zeros(len(references))
        for index, reference in enumerate(references):
            self._gather(reference, gains[index], depth, camera, pose, threads, measured, assumed)
            contributions[index] = float(measured[..., 3].sum()) + float(assumed[..., 3].sum()) - contributions.sum()
        exposure = _exposure(gains, contributions)
        # Points of views that were evicted from memory only have the colour of the cloud.
        image = np.zeros((*depth.shape, 3), np.float32)
        found = np.zeros(depth.shape, np.uint8)
        cloud = (_without_speckles(rendered), np.ascontiguousarray(colour))
        arguments = (measured, assumed, exposure, *cloud, image, found)
        run_in_threads(
            normalise_rows, [(start, stop, *arguments) for start, stop in split_range(camera.height, threads)]
        )
        valid = found > 0
        if not valid.all():
            means = [
                _mean_colour(reference, gain / exposure) for reference, gain in zip(references, gains, strict=True)
            ]
            prior = (np.mean(means, axis=0) if means else np.full(3, 128.0)).astype(np.float32)
            image = push_pull(image, background_weight(depth, valid), prior=prior, prior_weight=PRIOR_WEIGHT)
        np.clip(np.rint(image, out=image), 0, 255, out=image)
        return image.astype(np.uint8), valid, depth

    def _gather(
        self,
        reference: Reference,
        gain: np.ndarray,
        depth: np.ndarray,
        camera: Camera,
        pose: np.ndarray,
        threads: int,
        measured: np.ndarray,
        assumed: np.ndarray,
    ) -> None:
        """Adds the look-ups in one reference (see `gather_rows`)."""
        view = reference.view
        A, b = pixel_transform(camera, pose, view.camera, view.world_from_camera)
        centre = pose[:3, :3].T @ (view.world_from_camera[:3, 3] - pose[:3, 3])
        geometry = np.array([1 / camera.fx, 1 / camera.fy, camera.cx, camera.cy, *centre], np.float32)
        settings = np.array(
            [
                DEPTH_TOLERANCE_RATIO,
                DEPTH_TOLERANCE_M,
                COMPLETED_TOLERANCE,
                BORDER_FEATHER_PX,
                ANGLE_SHARPNESS,
                MAX_PARALLAX_PX,
                MAX_PARALLAX_PX if view.is_observation else 0.0,
            ],
            np.float32,
        )
        source = (view.image, gain.astype(np.float32), reference.depth, reference.measured, reference.weight)
        arguments = (depth, A, b, *source, settings, geometry, measured, assumed)
        run_in_threads(gather_rows, [(start, stop, *arguments) for start, stop in split_range(camera.height, threads)])


def _reduced(conditioning: Conditioning, divisor: int) -> Conditioning:
    """The conditioning of views of a fraction of the width and height."""
    camera, renders, offset = conditioning.camera, conditioning.renders, divisor // 2
    camera = camera.resized(camera.width // divisor, camera.height // divisor)

    def every(layer: torch.Tensor) -> torch.Tensor:
        return layer[:, offset::divisor, offset::divisor][:, : camera.height, : camera.width]

    layers = (renders.colour, renders.depth, renders.covered, renders.provenance)
    return replace(
        conditioning, camera=camera, renders=Rendering(*(every(layer) for layer in layers)), stored_confidence=None
    )


def _exact_depth(
    rendered: np.ndarray, camera: Camera, pose: np.ndarray, references: list[Reference], threads: int
) -> np.ndarray:
    """Rendered depth (H, W) float32, interpolated in the references that gave it, without gaps in surfaces."""
    sources = [
        DepthSource(reference.depth, reference.given, reference.view.camera, reference.view.world_from_camera)
        for reference in references
        if reference.view.is_observation
    ]
    gap = GAP_PX * max(1.0, (rendered.size / WORKING_PIXELS) ** 0.5)
    return refine_depth(rendered, camera, pose, sources, gap=gap, threads=threads)


def _complete_depth(rendered: np.ndarray, camera: Camera, pose: np.ndarray, references: list[Reference]) -> np.ndarray:
    """Depth for every pixel: rendered, else warped from the completed depth of the references, else filled smoothly."""
    rendered = _without_speckles(rendered)
    warped = np.zeros_like(rendered)
    for reference in references:
        view = reference.view
        A, b = pixel_transform(view.camera, view.world_from_camera, camera, pose)
        full_from_half = np.array([[2, 0, 0], [0, 2, 0], [0, 0, 1]], np.float32)
        unmeasured = np.ascontiguousarray(1 - reference.measured[::2, ::2])
        half = np.ascontiguousarray(reference.depth[::2, ::2])
        splat_depth(half, unmeasured, A @ full_from_half, b, np.float32(1.3 * camera.fx / view.camera.fx), warped)
    return fill_depth(np.where(rendered > 0, rendered, _without_speckles(warped)))


def _without_speckles(depth: np.ndarray) -> np.ndarray:
    """`depth` without isolated pixels, which would make smooth fills blotchy."""
    valid = (depth > 0).astype(np.float32)
    coverage = cv2.blur(valid, (SPECKLE_WINDOW_PX, SPECKLE_WINDOW_PX))
    return np.where(coverage > MIN_SPECKLE_COVERAGE, depth, np.float32(0))


def _exposure(gains: np.ndarray, contributions: np.ndarray) -> np.ndarray:
    """(3,) float32 gain of the view: the mean of the references' gains, weighted by their share of the image."""
    share = contributions**EXPOSURE_POWER
    if share.sum() <= 0:
        return np.ones(3, np.float32)
    return np.exp((np.log(gains) * (share / share.sum())[:, None]).sum(axis=0)).astype(np.float32)


def _mean_colour(reference: Reference, gain: np.ndarray) -> np.ndarray:
    """(3,) mean colour of a reference in the exposure of the view."""
    return np.clip(apply_gain(reference.view.image[::4, ::4], gain), 0, 255).mean(axis=(0, 1))
