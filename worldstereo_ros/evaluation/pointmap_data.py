"""Clips with true poses for the evaluation of point maps: of worlds with moving things, and of posed sequences."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from worldstereo_ros.evaluation.drawn_movers import DIRECTIONS, draw_mover
from worldstereo_ros.evaluation.inputs import open_whole
from worldstereo_ros.evaluation.pointmap_clips import PointmapClip
from worldstereo_ros.evaluation.world_sequences import CAMERA, PREFIX, PosedSequence
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.scenes import (
    KINDS,
    SPLITS,
    Scene,
    add_moving_objects,
    make_path,
    make_scene,
    render_scene,
    seed_of,
)
from worldstereo_ros.scenes.paths import clearance
from worldstereo_ros.scenes.raytracing.scene_flow import scene_flow
from worldstereo_ros.utils.errors import InputError

__all__ = ["PointmapClip", "open_clips", "world_clip"]

DRAWN_PREFIX = "movers:"
FRAMES = 17  # of a clip
STEP_S = 0.1
STEP_M, TURN_RAD = 0.11, 0.12  # most, between frames; a clip is about 1.5 m long
MOVING_OBJECTS = 4
WALKS = ("handheld", "ground")
WALK_SEEDS = 6  # paths that are tried for moving things in view
MIN_CLEARANCE_M = 0.15
MAX_MOVING_SHARE = 0.3
PREVIEW = (40, 30)
MIN_CLIP = 9  # frames; fewer at the end of a sequence are left out


def open_clips(data: Sequence[str | Path], on_note: Callable[[str], None] | None = None) -> Iterator[PointmapClip]:
    """Yields the clips that `worldstereo evaluate --pointmaps --data` names.

    Args:
        data: posed sequences, folders of such, or `worlds:SPLIT:COUNT`: each world gives a clip of a handheld camera
            and one of a wheeled robot, with up to `MOVING_OBJECTS` moving things; `movers:PATH` is posed sequences with
            depth into which moving things are drawn, one across the view and, once more, one along it.
        on_note: called with sentences about damaged frames. They are left out before clips are made of the others, and
            the numbers in the names of clips count those.

    Raises:
        InputError: it is none of these.
        DatasetError: no frame of a sequence can be read.
    """
    worlds: list[tuple[str, int]] = []
    sequences: list[PosedSequence] = []
    drawn: list[PosedSequence] = []
    for one in data:
        if str(one).startswith(PREFIX):
            worlds.append(_parse_worlds(str(one)))
        elif str(one).startswith(DRAWN_PREFIX):
            drawn += open_whole(str(one).removeprefix(DRAWN_PREFIX), on_note)
        else:
            sequences += open_whole(one, on_note, needs_depth=False)
    if not worlds and not sequences and not drawn:
        raise InputError("There is nothing to evaluate; name posed sequences or worlds:SPLIT:COUNT with --data.")
    for split, count in worlds:
        for number in range(count):
            for walk in WALKS:
                clip = world_clip(split, number, walk)
                if clip is not None:
                    yield clip
    for sequence in sequences:
        yield from _posed_clips(sequence)
    for sequence in drawn:
        for clip in _posed_clips(sequence):
            for direction in DIRECTIONS:
                yield draw_mover(clip, direction)


def _parse_worlds(text: str) -> tuple[str, int]:
    parts = text.split(":")
    if (
        len(parts) != 3
        or parts[1] not in SPLITS
        or not parts[2].isdecimal()
        or not 1 <= int(parts[2]) <= len(SPLITS[parts[1]])
    ):
        raise InputError(
            f"'{text}' names no worlds; worlds:SPLIT:COUNT was expected, as in worlds:test:6, with one of the splits "
            f"{', '.join(SPLITS)}."
        )
    return parts[1], int(parts[2])


def world_clip(
    split: str, index: int, walk: str, *, frames: int = FRAMES, camera: Camera = CAMERA, device: str | None = None
) -> PointmapClip | None:
    """A clip through a world with moving things; of some paths the one that sees most of them.

    Returns:
        None if the world has no free path of this kind.
    """
    kinds = list(KINDS)
    kind = kinds[index % len(kinds)]
    scene = _with_moving_objects(make_scene(kind, seed_of(split, index)))
    times = np.arange(frames) * STEP_S
    ids = [mover.instance for mover in scene.moving_objects]
    best: tuple[float, np.ndarray] | None = None
    for seed in range(WALK_SEEDS):
        with suppress(InputError):
            poses = make_path(scene, walk, frames, seed=seed, step=STEP_M, turn=TURN_RAD)
            if clearance(scene, poses[:, :3, 3], times).min() < MIN_CLEARANCE_M:
                continue
            preview = render_scene(
                scene, camera.resized(*PREVIEW), poses[::4], times=times[::4], light="plain", device=device
            )
            share = float(np.isin(preview.instance.cpu().numpy(), ids).mean())
            if share <= MAX_MOVING_SHARE and (best is None or share > best[0]):
                best = share, poses
    if best is None:
        return None
    poses = best[1]
    import torch

    rendered = render_scene(scene, camera, poses, supersample=2, times=times, device=device)
    flow = scene_flow(
        scene, rendered, camera, torch.from_numpy(poses), torch.from_numpy(times), torch.from_numpy(times + STEP_S)
    )
    first = invert_pose(poses[0])[:3, :3].astype(np.float32)
    name = f"{split}{index}-{kind}-{walk}"
    return PointmapClip(
        f"worlds, {walk}", name, rendered.image.cpu().numpy(), camera, poses, rendered.depth.cpu().numpy(),
        np.isin(rendered.instance.cpu().numpy(), ids), flow.cpu().numpy() @ first.T,
    )  # fmt: skip


def _with_moving_objects(scene: Scene) -> Scene:
    for count in range(MOVING_OBJECTS, 0, -1):
        with suppress(InputError):
            return add_moving_objects(scene, count)
    return scene


def _posed_clips(sequence: PosedSequence) -> Iterator[PointmapClip]:
    """Clips of consecutive frames; those of the end may be shorter."""
    name = Path(sequence.path).name
    if not sequence.posed or len(sequence) < 2:
        raise InputError(f"{sequence.path} has no poses of several frames; a posed sequence was expected.")
    count = max(1, math.ceil(len(sequence) / FRAMES))
    for index in range(count):
        rows = range(index * FRAMES, min(len(sequence), (index + 1) * FRAMES))
        if len(rows) < MIN_CLIP and index:
            return
        views = [sequence[row].with_finite_depth() for row in rows]
        if any(view.camera != views[0].camera for view in views):
            raise InputError(
                f"The frames of {sequence.path} have different intrinsics; those of one camera were expected."
            )
        depth = None
        if any(view.depth is not None for view in views):
            blank = np.zeros(views[0].image.shape[:2], np.float32)
            depth = np.stack([blank if view.depth is None else view.depth for view in views])
        yield PointmapClip(
            name,
            f"{name}:{rows.start}-{rows.stop - 1}",
            np.stack([view.image for view in views]),
            views[0].camera,
            np.stack([view.world_from_camera for view in views]),
            depth,
        )
