"""Clips for AnyRecon: captures from anywhere on a path, and what their points show of its other views.

The published model was trained with the first frame and two to four more as captures, half of the time from the first
twenty, so that most targets are views beyond them. Renders are those of the published renderer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worldstereo_ros.geometry.cameras import unproject
from worldstereo_ros.pipelines.anyrecon.published_geometry import depth_edges
from worldstereo_ros.pipelines.anyrecon.published_rendering import paint_published
from worldstereo_ros.training.data.world_files import RenderedWorld
from worldstereo_ros.utils.errors import InputError

NEAR_FRAMES, NEAR_PROB = 20, 0.5  # of the other captures: chosen from the first frames, and how often
MIN_CAPTURES, MAX_CAPTURES = 2, 4  # in addition to the first frame


@dataclass(frozen=True)
class CaptureClip:
    """A clip of T frames, captures first, all (H, W, 3) uint8 RGB.

    Attributes:
        images: the true views.
        frames: what conditions them: photographs of captures, renders of targets with black holes.
        masks: (H, W) bool, True = visible.
        captures: number of captures.
        positions: positions of the frames on the path.
    """

    images: list[np.ndarray]
    frames: list[np.ndarray]
    masks: list[np.ndarray]
    captures: int
    positions: list[int]


def choose_capture_frames(frames: int, random: np.random.Generator) -> list[int]:
    """Chooses the captures of a clip: the first frame and others.

    Args:
        frames: number of frames on the path; at least 2.
        random: random number generator.

    Returns:
        Ascending positions; at least one frame is left as a target.
    """
    count = int(random.integers(MIN_CAPTURES, MAX_CAPTURES + 1))
    end = min(NEAR_FRAMES, frames) if random.random() < NEAR_PROB else frames
    others = random.permutation(np.arange(1, end))[: min(count, frames - 2)]
    return [0, *sorted(int(i) for i in others)]


def sample_capture_clip(world: RenderedWorld, frames: int, random: np.random.Generator) -> CaptureClip:
    """Samples a clip of a world.

    Args:
        world: the world.
        frames: frames of the clip, captures included.
        random: random number generator.

    Raises:
        InputError: there are fewer than two frames, or no walk of the world has as many views.
    """
    walks = world.walk.numpy()
    views = np.flatnonzero(walks == random.choice(np.unique(walks)))
    if not 2 <= frames <= len(views):
        raise InputError(f"A clip of {frames} frames was requested; 2 to {len(views)}, the views of a walk, exist.")
    stride = int(random.integers(1, (len(views) - 1) // (frames - 1) + 1))
    start = int(random.integers(len(views) - stride * (frames - 1)))
    path = views[start : start + stride * (frames - 1) + 1 : stride]
    path = path[::-1] if random.random() < 0.5 else path
    world = world.mirrored() if random.random() < 0.5 else world
    images = [world.image[int(view)].permute(1, 2, 0).numpy() for view in path]
    poses, camera = world.pose.double().numpy(), world.camera
    captures = choose_capture_frames(frames, random)
    points, colours = [], []
    for position in captures:
        view = int(path[position])
        depth = world.depth[view].float().numpy()
        keep = (depth > 0) & ~depth_edges(depth)
        points.append(unproject(depth, camera, poses[view])[keep])
        colours.append(images[position][keep])
    cloud, cloud_colours = np.concatenate(points), np.concatenate(colours)
    order = captures + [position for position in range(frames) if position not in captures]
    conditions, masks = [], []
    for position in order:
        if position in captures:
            conditions.append(images[position])
            masks.append(np.ones(images[position].shape[:2], bool))
        else:
            painted = paint_published(cloud, cloud_colours, camera, poses[int(path[position])])
            conditions.append(painted.image)
            masks.append(painted.visible)
    return CaptureClip([images[position] for position in order], conditions, masks, len(captures), order)
