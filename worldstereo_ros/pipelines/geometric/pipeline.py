"""The pipeline without weights: geometry from the cloud, colours from the remembered pictures, smooth fills.

What it does to one view:

1. The rendered cloud gives the depth. Where memory has a picture but no depth (glass, screens, far walls), the
   pictures' completed depth is moved into the view; what is left is filled smoothly, background first.
2. Every reference picture is looked up at that depth, all in one exposure (`photometry.py`); looks are weighed by
   angle, resolution, and distance from borders and edges, and only count where their own depth agrees.
3. What nobody saw is painted smoothly from its surroundings, background first.
4. `observed` is claimed by the rules of `provenance.py`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import torch

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.imaging.inpainting import background_weight, fill_depth, push_pull
from worldstereo_ros.imaging.overlap import ABSOLUTE, RELATIVE
from worldstereo_ros.imaging.warping import gather_rows, normalise_rows, pixel_transform, splat_depth
from worldstereo_ros.pipelines.base import Conditioning, OnStep, PipelineFrame
from worldstereo_ros.pipelines.geometric.provenance import observed_pixels
from worldstereo_ros.pipelines.geometric.references import (
    PARALLAX,
    Reference,
    ReferenceCache,
    select_references,
    supporting_view,
)
from worldstereo_ros.pipelines.geometric.warped_view import WarpedView
from worldstereo_ros.utils.jit import run_in_threads, split_range

LOOSE = 0.15  # depths that were completed, not measured, agree when they differ by less than this fraction
FEATHER = 24.0  # pixels over which a picture fades in from its border
SHARPNESS = 30.0  # against the angle between the lines of sight: the weight is a quarter at 15 degrees
PRIOR_WEIGHT = 0.2  # of the mean colour of the references, in fills
SPECK, SPECK_SHARE = 9, 0.35  # points that cover less of the window around them are left out
EXPOSURE_POWER = 2.0  # how much more the reference that gives most of the picture sets its exposure


class GeometricPipeline:
    """Imagines views from memory alone; see the module. Deterministic: prompt and generator are not used.

    Attributes:
        threads: how many threads one view may use.
    """

    name = "geometric"
    clip_length = 1
    selects_references = True

    def __init__(self, *, align: bool = True, threads: int | None = None) -> None:
        """Makes the pipeline.

        Args:
            align: bring the references to one exposure.
            threads: how many threads one view may use; None = as many as there are cores, at most 4.
        """
        self.threads = min(4, os.cpu_count() or 1) if threads is None else threads
        self._shelf = ReferenceCache(align=align)
        self._lock = threading.Lock()  # around the shelf: views may be painted side by side

    def __call__(
        self, conditioning: Conditioning, *, prompt: str, generator: torch.Generator, on_step: OnStep
    ) -> Iterator[PipelineFrame]:
        """Yields the frames of the clip in order, each as soon as it exists."""
        count = len(conditioning.world_from_camera)
        for index in range(count):
            on_step("warping", index, count)
            yield self.label_provenance(conditioning, index, self.warp(conditioning, index))

    def warp_all(self, conditioning: Conditioning, on_step: OnStep) -> list[WarpedView]:
        """All views of a clip painted, several side by side; for pipelines that must see them all before they begin.

        Args:
            conditioning: what memory says.
            on_step: called before each view that is waited for; where it raises, no other view is begun.
        """
        count = len(conditioning.world_from_camera)
        with ThreadPoolExecutor(self.threads) as pool:
            begun = [pool.submit(self.warp, conditioning, index, threads=1) for index in range(count)]
            try:
                warped_views = []
                for index, warped in enumerate(begun):
                    on_step("warping", index, count)
                    warped_views.append(warped.result())
                return warped_views
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def warp(self, conditioning: Conditioning, index: int, *, threads: int | None = None) -> WarpedView:
        """One view of a clip, without the question what of it was observed. May be called from several threads.

        Args:
            conditioning: what memory says.
            index: which view.
            threads: how many it may use; None: `self.threads`.
        """
        renders, pose = conditioning.renders, conditioning.world_from_camera[index]
        depth = renders.depth[index].cpu().numpy().astype(np.float32, copy=False)
        colour = renders.colour[index].cpu().numpy()
        views = select_references(conditioning.references, depth, conditioning.camera, pose)
        with self._lock:
            references, gains, errors = self._shelf.prepare(views)
        threads = threads or self.threads
        image, known, filled = self._warp(depth, colour, conditioning.camera, pose, references, gains, threads)
        return WarpedView(image, known, filled, depth, references, errors)

    def label_provenance(self, conditioning: Conditioning, index: int, warped: WarpedView) -> PipelineFrame:
        """The painted view as a frame that says what in it was observed."""
        camera, pose = conditioning.camera, conditioning.world_from_camera[index]
        witnesses = [
            supporting_view(reference, error)
            for reference, error in zip(warped.references, warped.errors, strict=True)
            if reference.view.observed is None  # what was imagined is no witness of what was observed
        ]
        observed = conditioning.renders.observed[index].cpu().numpy()
        observed = observed_pixels(warped.rendered, observed, camera, pose, witnesses, self.threads)
        return PipelineFrame(warped.image, warped.depth, observed)

    def _warp(
        self,
        rendered: np.ndarray,
        colour: np.ndarray,
        camera: Camera,
        pose: np.ndarray,
        references: list[Reference],
        gains: np.ndarray,
        threads: int,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The picture (H, W, 3) uint8, where it is no smooth fill (H, W) bool, and its depth (H, W) float32."""
        depth = _complete(rendered, camera, pose, references)
        measured = np.zeros((*depth.shape, 4), np.float32)
        assumed = np.zeros_like(measured)
        given = np.zeros(len(references))
        for index, reference in enumerate(references):
            self._look(reference, gains[index], depth, camera, pose, threads, measured, assumed)
            given[index] = float(measured[..., 3].sum()) + float(assumed[..., 3].sum()) - given.sum()
        exposure = _exposure(gains, given)
        # Points of views that are no longer kept have only the colour of the cloud.
        image = np.zeros((*depth.shape, 3), np.float32)
        found = np.zeros(depth.shape, np.uint8)
        arguments = (measured, assumed, exposure, _without_specks(rendered), np.ascontiguousarray(colour), image, found)
        run_in_threads(
            normalise_rows, [(start, stop, *arguments) for start, stop in split_range(camera.height, threads)]
        )
        known = found > 0
        if not known.all():
            means = [_mean(reference) * gain for reference, gain in zip(references, gains, strict=True)]
            prior = (np.mean(means, axis=0) / exposure if means else np.full(3, 128.0)).astype(np.float32)
            image = push_pull(image, background_weight(depth, known), prior=prior, prior_weight=PRIOR_WEIGHT)
        np.clip(np.rint(image, out=image), 0, 255, out=image)
        return image.astype(np.uint8), known, depth

    def _look(
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
        """Adds what one reference shows (see `gather_rows`)."""
        view = reference.view
        A, b = pixel_transform(camera, pose, view.camera, view.world_from_camera)
        centre = pose[:3, :3].T @ (view.world_from_camera[:3, 3] - pose[:3, 3])
        geometry = np.array([1 / camera.fx, 1 / camera.fy, camera.cx, camera.cy, *centre], np.float32)
        settings = np.array([RELATIVE, ABSOLUTE, LOOSE, FEATHER, SHARPNESS, PARALLAX], np.float32)
        source = (view.image, gain.astype(np.float32), reference.depth, reference.known, reference.trust)
        arguments = (depth, A, b, *source, settings, geometry, measured, assumed)
        run_in_threads(gather_rows, [(start, stop, *arguments) for start, stop in split_range(camera.height, threads)])


def _complete(rendered: np.ndarray, camera: Camera, pose: np.ndarray, references: list[Reference]) -> np.ndarray:
    """Depth for every pixel: rendered, else moved from the completed depth of the references, else smooth."""
    rendered = _without_specks(rendered)
    moved = np.zeros_like(rendered)
    for reference in references:
        view = reference.view
        A, b = pixel_transform(view.camera, view.world_from_camera, camera, pose)
        coarse = np.array([[2, 0, 0], [0, 2, 0], [0, 0, 1]], np.float32)
        chosen = np.ascontiguousarray(1 - reference.known[::2, ::2])
        small = np.ascontiguousarray(reference.depth[::2, ::2])
        splat_depth(small, chosen, A @ coarse, b, np.float32(1.3 * camera.fx / view.camera.fx), moved)
    return fill_depth(np.where(rendered > 0, rendered, _without_specks(moved)))


def _without_specks(depth: np.ndarray) -> np.ndarray:
    """`depth` without pixels that stand alone among holes: they make smooth fills look like a rash."""
    known = (depth > 0).astype(np.float32)
    return np.where(cv2.blur(known, (SPECK, SPECK)) > SPECK_SHARE, depth, np.float32(0))


def _exposure(gains: np.ndarray, given: np.ndarray) -> np.ndarray:
    """(3,) float32 gain of the view to paint: that of the references, by how much of the picture each gives."""
    share = given**EXPOSURE_POWER
    if share.sum() <= 0:
        return np.ones(3, np.float32)
    return np.exp((np.log(gains) * (share / share.sum())[:, None]).sum(axis=0)).astype(np.float32)


def _mean(reference: Reference) -> np.ndarray:
    return reference.view.image[::4, ::4].reshape(-1, 3).mean(axis=0)
