"""Clips of a mono video with depth, to train the stereo refiner on: a robot's own frames become its training set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch

from worldstereo_ros.depth.estimators import load_depth_estimator
from worldstereo_ros.io.files import DatasetError
from worldstereo_ros.pipelines.stereo.frame_geometry import GeometryTracker
from worldstereo_ros.pipelines.stereo.frame_sources import open_source
from worldstereo_ros.pipelines.stereo.steadying import FlowLink, flow_image
from worldstereo_ros.pipelines.stereo.torch_warp import warp_to_eye
from worldstereo_ros.training.data.stereo_clips import (
    HEIGHT_PX,
    INVALID_FLOW,
    MAX_DISPARITY_PX,
    NEAR_QUANTILE,
    WIDTH_PX,
    WINDOW_PX,
    StereoClip,
)
from worldstereo_ros.utils.errors import InputError

MAX_SIDE_PX = 640  # of frames; larger ones are made smaller, as holes would be wider than a crop
MIN_MOTION_PX = 0.5  # median flow from frame to frame; frames of a camera that stands still repeat each other
MAX_SKIPPED = 5  # such frames
CLIPS_AT_ONCE = 3  # windows of the same frames


@dataclass
class _Frames:
    """Frames of one shot so far: images, pixels of disparity per unit of base, flows to the frame before."""

    images: list[np.ndarray] = field(default_factory=list)
    inverses: list[np.ndarray] = field(default_factory=list)
    flows: list[np.ndarray] = field(default_factory=list)


def read_clips(source: Path, frames: int, count: int, *, device: str = "cpu", seed: int = 0) -> list[StereoClip]:
    """Reads clips without a true other eye.

    Args:
        source: video, image, folder of images or sequence; depth that was measured is used, else estimated.
        frames: frames of a clip.
        count: maximum number of clips, spread over a long video.
        device: of the depth estimator.
        seed: of the windows.

    Raises:
        DatasetError: the source cannot be read, or has too few usable frames.
        InputError: the frames are smaller than a window.
    """
    random = np.random.default_rng(seed)
    groups: list[list[StereoClip]] = []
    for shot in _shots(source, frames, device):
        groups.append(_cut(shot, random))
        if sum(map(len, groups)) > 2 * count:  # every second one of a long video
            groups = groups[::2]
    clips = [clip for group in groups for clip in group][:count]
    if not clips:
        raise DatasetError(
            f"{source} has no {frames} frames of one shot with depth and with things before a background."
        )
    return clips


def _shots(source: Path, frames: int, device: str) -> Iterator[_Frames]:
    """Runs of `frames` frames, without a cut."""
    opened = open_source(source)
    factor = min(1.0, MAX_SIDE_PX / max(opened.camera.width, opened.camera.height))
    size = round(opened.camera.width * factor), round(opened.camera.height * factor)
    if size[0] < WINDOW_PX or size[1] < HEIGHT_PX:
        raise InputError(f"{source} has frames of {size[0]}x{size[1]}; at least {WINDOW_PX}x{HEIGHT_PX} were expected.")
    tracker = GeometryTracker(opened.camera, load_depth_estimator("", device))
    run, before, skipped = _Frames(), None, 0
    for frame in opened.read(0):
        geometry = tracker.step(frame.image, frame.depth, frame.world_from_camera)
        if geometry.black or geometry.new_shot:
            run, before = _Frames(), None
            if geometry.black:
                continue
        image = cv2.resize(frame.image, size, interpolation=cv2.INTER_AREA)
        depth = cv2.resize(geometry.depth, size, interpolation=cv2.INTER_NEAREST)
        known = (depth > 0) & np.isfinite(depth)
        if not known.any():
            continue
        focal = opened.camera.fx * factor
        inverse = np.where(known, focal / np.where(known, depth, 1), 0).astype(np.float32)
        grey = flow_image(image)
        flow = np.full((2, size[1], size[0]), INVALID_FLOW, np.float32)
        if before is not None:
            link = FlowLink(before, grey, size)
            moved = np.stack([link.x - np.arange(size[0])[None], link.y - np.arange(size[1])[:, None]])
            if float(np.median(np.abs(moved).max(0))) < MIN_MOTION_PX and skipped < MAX_SKIPPED:
                skipped += 1
                continue
            flow = np.where(link.consistent[None], moved, INVALID_FLOW).astype(np.float32)
        before, skipped = grey, 0
        run.images.append(image)
        run.inverses.append(inverse)
        run.flows.append(flow)
        if len(run.images) == frames:
            yield run
            run = _Frames()


def _cut(shot: _Frames, random: np.random.Generator) -> list[StereoClip]:
    """Windows where something is hidden."""
    inverse = np.stack(shot.inverses)
    middle = torch.from_numpy(inverse[len(inverse) // 2])[None]
    near = float(np.quantile(inverse, NEAR_QUANTILE))
    if near <= 0:
        return []
    hole = warp_to_eye(middle[:, None], middle * (MAX_DISPARITY_PX / 2 / near)).hole.float()
    share = torch.nn.functional.avg_pool2d(hole, (HEIGHT_PX, WIDTH_PX), stride=4)[0]
    holes = share[:, : (middle.shape[-1] - WINDOW_PX) // 4 + 1].numpy()
    if holes.max() <= 0:
        return []
    images = np.stack(shot.images).transpose(0, 3, 1, 2)
    flows = np.stack(shot.flows)
    flows[0] = INVALID_FLOW
    # Disparity per unit of base fits float16 whatever the unit of the depth is.
    inverse = inverse * (MAX_DISPARITY_PX / near)
    clips = []
    for _ in range(CLIPS_AT_ONCE):
        chosen = holes + 0.7 * holes.max() * random.random(holes.shape)
        y, x = (4 * int(i) for i in np.unravel_index(int(chosen.argmax()), holes.shape))
        window = (..., slice(y, y + HEIGHT_PX), slice(x, x + WINDOW_PX))
        image, inverses, flow = (
            torch.from_numpy(np.ascontiguousarray(each[window]))
            for each in (images, inverse.astype(np.float16), flows.astype(np.float16))
        )
        nothing = (torch.zeros_like(image), torch.zeros_like(inverses), torch.full_like(flow, INVALID_FLOW))
        clips.append(StereoClip(image, inverses, flow, *nothing, torch.tensor(0.0)))
    return clips
