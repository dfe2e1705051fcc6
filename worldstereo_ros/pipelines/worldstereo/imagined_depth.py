"""Depth of imagined pixels: planes where they are likely, else the depth network, both fitted to the cloud."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from worldstereo_ros.depth.alignment import DepthError, complete_depth
from worldstereo_ros.depth.estimators import DepthEstimator
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.pipelines.base import Conditioning, PipelineFrame
from worldstereo_ros.pipelines.geometric.layout import Layout, PlaneRender

# Depth of a plane is used if the plane is at least this likely, and if it differs from the depth of the network by no
# more than a factor: a larger one for planes that a view saw in part than for sides of the room that are assumed. The
# two are compared at every fourth pixel.
MIN_PLANE_PROBABILITY, DEPTH_STRIDE_PX = 0.25, 4
MAX_DETECTED_RATIO, MAX_ASSUMED_RATIO = 2.5, 1.5


def render_planes(
    frame: PipelineFrame, conditioning: Conditioning, index: int, layout: Layout, threads: int = 1
) -> PlaneRender:
    """The planes of a layout in the pixels of a view that no camera saw.

    Args:
        frame, conditioning, index: see `complete_frame`.
        layout: of the place.
        threads: number of threads to use.
    """
    mask = ~_seen(frame, conditioning, index)
    return layout.render_view(conditioning.camera, conditioning.world_from_camera[index], mask=mask, threads=threads)


def _seen(frame: PipelineFrame, conditioning: Conditioning, index: int) -> np.ndarray:
    """(H, W) bool: pixels that a camera saw. What was imagined before is not more certain for that."""
    return (conditioning.renders.provenance[index].cpu().numpy() >= Provenance.ESTIMATED) | frame.observed


def complete_frame(
    frame: PipelineFrame,
    conditioning: Conditioning,
    index: int,
    planes: PlaneRender | None,
    network: DepthEstimator | None,
    *,
    detected: int = 0,
) -> PipelineFrame:
    """A frame with depth where memory has none, and with `plane_absence`.

    Depth is that of a plane where one is likely and the depth network roughly agrees, else that of the network.

    Args:
        frame: composed frame.
        conditioning: what memory holds about the clip.
        index: index of the view in the clip.
        planes: of the view, see `render_planes`; None: no planes.
        network: estimates depth; None: depth stays as it is.
        detected: number of planes that views saw in part; those after them are assumed.
    """
    covered, depth = conditioning.renders.covered[index].cpu().numpy() | frame.observed, frame.depth
    seen = _seen(frame, conditioning, index)
    if depth is None or seen.all():
        return frame
    if planes is not None:
        frame = replace(frame, plane_absence=np.where(seen, np.float32(0), 1 - planes.probability).clip(0, 1))
    if network is None or covered.all():
        return frame
    try:
        estimated = network(frame.image, conditioning.camera)
    except DepthError:  # nothing but sky
        return frame
    known = np.where(covered, depth, np.float32(0))
    if planes is not None:
        coarse = (slice(None, None, DEPTH_STRIDE_PX),) * 2
        completed = complete_depth(known[coarse], estimated[coarse])
        completed = cv2.resize(completed, known.shape[::-1], interpolation=cv2.INTER_NEAREST)
        ratio = np.where(planes.plane < detected, np.float32(MAX_DETECTED_RATIO), np.float32(MAX_ASSUMED_RATIO))
        agrees = (planes.depth < completed * ratio) & (planes.depth * ratio > completed)
        likely = ~covered & (planes.probability > MIN_PLANE_PROBABILITY)
        known = np.where(likely & agrees, planes.depth, known)
    return replace(frame, depth=complete_depth(known, estimated))
