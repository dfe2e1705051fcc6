"""Frames of a pipeline, together with what memory held about them, as imagined views."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from worldstereo_ros.geometry.views import ImaginedView
from worldstereo_ros.pipelines.base import Conditioning, PipelineFrame
from worldstereo_ros.pipelines.confidence import load_confidence


def with_confidence(frame: PipelineFrame, conditioning: Conditioning, offset: int, pipeline: str) -> PipelineFrame:
    """Adds the confidences that the pipeline does not provide.

    Args:
        frame: view `offset` of a clip.
        conditioning: of the clip.
        offset: position of the view in the clip.
        pipeline: name of the pipeline.
    """
    if frame.confidence is not None and (frame.depth_confidence is not None or frame.depth is None):
        return frame
    found = load_confidence(pipeline)(frame, conditioning, offset)
    colour, depth = found.colour, found.depth
    if frame.far_confidence is not None:  # as good as what it copies; its features are those of a hole
        colour = np.where(frame.far_confidence > 0, frame.far_confidence, colour)
    return replace(
        frame,
        confidence=colour if frame.confidence is None else frame.confidence,
        depth_confidence=depth if frame.depth_confidence is None else frame.depth_confidence,
    )


def imagined_view(
    frame: PipelineFrame, conditioning: Conditioning, offset: int, reference: int, *, index: int, count: int
) -> ImaginedView:
    """The frame of view `offset` of a clip together with its conditioning.

    Args:
        frame: what the pipeline generated.
        conditioning: of the clip.
        offset: position of the view in the clip.
        reference: index of its best reference in the view bank, -1 = none.
        index: position of the view on the path.
        count: number of views on the path.
    """
    renders = conditioning.renders
    return ImaginedView(
        image=frame.image,
        camera=conditioning.camera,
        world_from_camera=conditioning.world_from_camera[offset],
        depth=frame.depth,
        observed=frame.observed,
        confidence=frame.confidence,
        estimated=frame.estimated,
        depth_confidence=frame.depth_confidence,
        conditioning=renders.colour[offset].cpu().numpy(),
        covered=renders.covered[offset].cpu().numpy(),
        index=index,
        count=count,
        references=(reference,) if reference >= 0 else (),
    )
