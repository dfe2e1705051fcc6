"""Small clips around what the other eye sees and no frame has seen, of many worlds, prepared once and kept on disk.

What past frames saw is tested as at inference: depth of the frames before a clip, whole and at a low resolution, says
which pixels of either eye were visible. Each clip gives a true pair and frames there and back (see `stereo_batches`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.pipelines.stereo.background import fill_background
from worldstereo_ros.pipelines.stereo.torch_warp import HOLE, warp_to_eye
from worldstereo_ros.pipelines.stereo.warp import WarpedEye
from worldstereo_ros.scenes import PATHS, Scene, make_path, make_scene, seed_of
from worldstereo_ros.scenes.raytracing.packing import PackedScenes, pack
from worldstereo_ros.scenes.raytracing.primitives import Random
from worldstereo_ros.training.data.stereo_batches import StereoBatch, make_batch
from worldstereo_ros.training.data.stereo_clips import (
    BASE_M,
    FOV_DEG,
    FRAME_S,
    MARGIN_PX,
    MAX_DISPARITY_PX,
    MIN_BASE_M,
    NEAR_QUANTILE,
    STEP_M,
    TURN_RAD,
    StereoClip,
    flow_between,
    inverse_depth,
    render_frames,
    with_moving_objects,
)
from worldstereo_ros.utils.errors import InputError

HEIGHT_PX, WIDTH_PX = 64, 96  # of a crop
WINDOW_PX = WIDTH_PX + MARGIN_PX
FULL_WIDTHS = (320, 320, 320, 480, 640)  # of the image that a crop is cut from
KINDS = {"room": 0.45, "corridor": 0.2, "warehouse": 0.2, "lot": 0.15}  # relative frequencies, as for other networks
CLIP_FRAMES = 3
MAX_PAST, PAST_APART_M = 6, 0.08  # frames before a clip, and their least distance; fewer of them are drawn at random
SMALL_WIDTH = 160  # of the images of depth that tell what was visible
SAME_SURFACE = 0.04  # relative difference of depths of one surface there
MIN_PAINTED_PX = 40  # of a frame of a clip, in the mean
TRUE_PAIR, THERE_AND_BACK = 0, 1


@dataclass(frozen=True)
class StereoCrops:
    """N clips of T frames as they are stored; see `StereoCondition` and `StereoBatch`.

    Attributes:
        filled, target, background: (N, T, 3, H, W) uint8.
        reference: (N, T, 3, H, W + margin) uint8.
        hole, painted: (N, T, 1, H, W) bool.
        disparity: (N, T, 1, H, W) float16.
        flow: (N, T, 2, H, W) float16.
        kind: (N,) uint8, `TRUE_PAIR` or `THERE_AND_BACK`.
        world: (N,) int32, number of the world.
    """

    filled: torch.Tensor
    target: torch.Tensor
    background: torch.Tensor
    reference: torch.Tensor
    hole: torch.Tensor
    painted: torch.Tensor
    disparity: torch.Tensor
    flow: torch.Tensor
    kind: torch.Tensor
    world: torch.Tensor

    def __len__(self) -> int:
        return len(self.world)

    def take(self, rows: np.ndarray) -> StereoCrops:
        """Clips of these places."""
        index = torch.from_numpy(np.asarray(rows, np.int64))
        return StereoCrops(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def save(self, file: Path) -> None:
        """Writes them to a temporary file and renames it."""
        part = file.with_name(f"{file.stem}.{os.getpid()}.part.npz")
        np.savez_compressed(part, **{f.name: getattr(self, f.name).numpy() for f in fields(self)})
        part.replace(file)


def load_crops(files: Iterable[Path]) -> StereoCrops:
    """Reads files of `StereoCrops.save`.

    Raises:
        InputError: there is none.
    """
    parts = []
    for file in files:
        with np.load(file) as stored:
            parts.append({f.name: stored[f.name] for f in fields(StereoCrops)})
    if not parts:
        raise InputError("There are no clips; render some first.")
    return StereoCrops(**{name: torch.from_numpy(np.concatenate([part[name] for part in parts])) for name in parts[0]})


def join_crops(parts: Sequence[StereoCrops]) -> StereoCrops:
    """All clips of some parts, at least one."""
    return StereoCrops(**{f.name: torch.cat([getattr(part, f.name) for part in parts]) for f in fields(StereoCrops)})


def with_painted(clips: StereoCrops) -> StereoCrops:
    """The clips of which enough is painted."""
    frames = clips.painted.shape[1]
    return clips.take(np.flatnonzero(clips.painted.flatten(1).sum(1).numpy() >= MIN_PAINTED_PX * frames))


def views_of(clips: StereoCrops) -> tuple[StereoCrops, StereoCrops, StereoCrops, StereoCrops]:
    """The clips as they are, with `cut_sides`, `without_memory`, and with both; holes filled as this version does."""
    lone = without_memory(clips)
    return refill(clips), cut_sides(clips), lone, cut_sides(lone)


def refill(clips: StereoCrops) -> StereoCrops:
    """The same clips, filled as this version fills holes."""
    return _filled(clips, clips.painted, clips.hole)


def without_memory(clips: StereoCrops) -> StereoCrops:
    """The same clips as if past frames had seen nothing, as of a lone photograph."""
    return _filled(replace(clips, filled=clips.background, painted=clips.hole), clips.hole, clips.hole)


def cut_sides(clips: StereoCrops) -> StereoCrops:
    """The same clips as if the camera's image ended at the right side of the crop.

    What the made eye sees beyond that is painted, unless past frames saw it.
    """
    width = clips.filled.shape[-1]
    remembered = clips.hole & ~clips.painted
    beyond = (torch.arange(width) + clips.disparity.float() > width - 1) & ~remembered
    reference = clips.reference.clone()
    reference[..., width:] = reference[..., width - 1 : width]
    cut = replace(clips, reference=reference, hole=clips.hole | beyond, painted=clips.painted | beyond)
    return _filled(cut, cut.painted, cut.hole)


def _filled(clips: StereoCrops, painted: torch.Tensor, hole: torch.Tensor) -> StereoCrops:
    """Clips whose images are filled where they are painted, and whose backgrounds where holes are, (N, T, 1, H, W)."""
    size = clips.disparity.shape[-2:]

    def filled(images: torch.Tensor, holes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        marked = torch.where(holes, HOLE, clips.disparity.float()).view(-1, *size).numpy()
        rows = images.flatten(0, 1).permute(0, 2, 3, 1).contiguous().numpy()
        eyes = [fill_background(WarpedEye(*each), threads=1) for each in zip(rows, marked, strict=True)]
        levels = torch.from_numpy(np.stack([eye.image for eye in eyes])).permute(0, 3, 1, 2).contiguous()
        shown = torch.from_numpy(np.stack([eye.disparity for eye in eyes]))
        return levels.view_as(images), shown.view_as(clips.disparity).half()

    image, shown = filled(clips.filled, painted)
    return replace(clips, filled=image, background=filled(clips.background, hole)[0], disparity=shown)


def render_crops(
    split: str,
    index: int,
    *,
    clips: int = 2,
    frames: int = CLIP_FRAMES,
    kinds: Mapping[str, float] | None = None,
    supersample: int = 2,
    light: str = "soft",
    clean: bool = False,
    anywhere: bool = False,
) -> StereoCrops | None:
    """Renders clips of one world; deterministic.

    Args:
        split: training, validation or test (`scenes.splits`).
        index: number of the world.
        clips: clips of the world, each on a path of its own.
        frames: frames of a clip.
        kinds: relative frequency of each kind of scene; None: `KINDS`.
        supersample, light: see `render_scene`.
        clean: true pairs with exact depth alone, for validation.
        anywhere: clips are cut anywhere, and not around much that is painted, where the side of an image (`cut_sides`)
            is harder than elsewhere.

    Returns:
        Two of each clip, a true pair and there and back (only the former if `clean`); None where no path is free,
        everything is too near, or past frames saw everything.
    """
    random = Random(130_363 * index + 29)
    weights = dict(kinds or KINDS)
    bounds = np.cumsum(list(weights.values())) / sum(weights.values())
    kind = list(weights)[min(int(np.searchsorted(bounds, random.uniform(0, 1))), len(weights) - 1)]
    scene = with_moving_objects(make_scene(kind, seed_of(split, index)), random)
    packed: PackedScenes | None = None
    found = []
    for path in range(clips):
        step = STEP_M[0] * (STEP_M[1] / STEP_M[0]) ** random.uniform(0, 1)
        stride, past = max(1, math.ceil(PAST_APART_M / step)), random.integer(0, MAX_PAST)
        turn, start, period = TURN_RAD * random.uniform(0.1, 1), random.uniform(0, 20), random.uniform(*FRAME_S)
        count = past * stride + frames
        with suppress(InputError):  # no free path
            poses = make_path(scene, random.choice(list(PATHS)), max(count, 4), seed=path, step=step, turn=turn)[:count]
            packed = packed or pack([scene], light=light)
            rows = np.concatenate([np.arange(past) * stride, np.arange(past * stride, count)])
            made = _clip(scene, packed, poses[rows], start + period * rows, frames, random, supersample, anywhere)
            if made is not None:
                found.append(made)
    if not found:
        return None
    numbers = np.random.default_rng([index, 7])
    parts = []
    for clip, seen, other_seen in found:
        for there_and_back in (TRUE_PAIR,) if clean else (TRUE_PAIR, THERE_AND_BACK):
            memory = seen if there_and_back else other_seen
            one = StereoClip(**{f.name: getattr(clip, f.name)[None] for f in fields(StereoClip)})
            batch = make_batch(
                one, np.array([bool(there_and_back)]), numbers, clean=clean, memory=memory[None],
                widen_prob=float(there_and_back), colours=False,
            )  # fmt: skip
            if anywhere or float(batch.condition.painted.sum()) >= MIN_PAINTED_PX * frames:
                parts.append(_stored(batch, there_and_back, index))
    if not parts:
        return None
    return join_crops(parts)


def _stored(batch: StereoBatch, kind: int, world: int) -> StereoCrops:
    def levels(images: torch.Tensor) -> torch.Tensor:
        return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

    condition = batch.condition
    return StereoCrops(
        levels(condition.filled), levels(batch.target), levels(batch.background), levels(condition.reference),
        batch.hole > 0.5, condition.painted > 0.5, condition.disparity.half(), batch.flow.half(),
        torch.tensor([kind], dtype=torch.uint8), torch.tensor([world], dtype=torch.int32),
    )  # fmt: skip


def _clip(
    scene: Scene, packed: PackedScenes, poses: np.ndarray, times: np.ndarray, frames: int, random: Random,
    supersample: int, anywhere: bool,
) -> tuple[StereoClip, torch.Tensor, torch.Tensor] | None:  # fmt: skip
    """The last `frames` of poses as a clip, and what those before saw of either eye, (T, H, W + margin) bool."""
    width = random.choice(list(FULL_WIDTHS))
    full = Camera.from_fov(width, width * 3 // 4, math.radians(random.uniform(*FOV_DEG)))
    base = random.uniform(*BASE_M)
    small = full.resized(SMALL_WIDTH, SMALL_WIDTH * 3 // 4)
    scale = full.width / small.width
    before = render_frames(packed, small, poses, times, 1).depth
    first = len(poses) - frames
    near = torch.quantile(inverse_depth(before[first:], full.fx).flatten(), NEAR_QUANTILE)
    base = min(base, MAX_DISPARITY_PX / max(float(near), 1e-3))
    if base < MIN_BASE_M:
        return None
    right = poses.copy()
    right[:, :3, 3] += base * poses[:, :3, 0]
    moving = torch.tensor([mover.instance for mover in scene.moving_objects], dtype=torch.int32)
    middle = first + frames // 2
    shown = render_frames(packed, small, right[middle : middle + 1], times[middle : middle + 1], 1)
    hole = warp_to_eye(before[middle][None, None], inverse_depth(before[middle], small.fx)[None] * base).hole
    known = _seen_before(shown.depth, shown.instance, moving, small, right[middle : middle + 1], small, before, poses,
                         np.array([middle]))  # fmt: skip
    corner = random.integer(0, full.width - WINDOW_PX), random.integer(0, full.height - HEIGHT_PX)
    place = corner if anywhere else _window((hole & ~known)[0], scale, full, random)
    if place is None:
        return None
    camera = Camera(WINDOW_PX, HEIGHT_PX, full.fx, full.fy, full.cx - place[0], full.cy - place[1])
    rows = np.arange(first, len(poses))
    both = render_frames(
        packed, camera, np.concatenate([poses[rows], right[rows]]), np.concatenate([times[rows]] * 2), supersample
    )
    parts, seen = [], []
    for eye, at in zip((slice(0, frames), slice(frames, None)), (poses[rows], right[rows]), strict=True):
        depth, instance = both.depth[eye], both.instance[eye]
        still = ~torch.isin(instance, moving)
        flow = flow_between(depth, still, camera, torch.from_numpy(at))
        image = both.image[eye].permute(0, 3, 1, 2).contiguous()
        parts.append((image, inverse_depth(depth, camera.fx).half(), flow.half()))
        seen.append(_seen_before(depth, instance, moving, camera, at, small, before, poses, rows))
    return StereoClip(*parts[0], *parts[1], torch.tensor(base)), seen[0], seen[1]


def _seen_before(
    depth: torch.Tensor, instance: torch.Tensor, moving: torch.Tensor, camera: Camera, at: np.ndarray,
    past_camera: Camera, past_depth: torch.Tensor, past_poses: np.ndarray, rows: np.ndarray,
) -> torch.Tensor:  # fmt: skip
    """(T, H, W) bool: still pixels that frames before showed, away from jumps of depth.

    Args:
        depth, instance: (T, H, W) of the eye.
        moving: instances that move.
        camera, at: of the eye, (T, 4, 4).
        past_camera, past_depth, past_poses: of all frames, (K, h, w) and (K, 4, 4).
        rows: (T,) number of each frame of the eye among them; it remembers those before.
    """
    near = -functional.max_pool2d(-past_depth[:, None], 3, 1, 1)
    far = functional.max_pool2d(torch.where(past_depth > 0, past_depth, 1e6)[:, None], 3, 1, 1)
    rays = torch.from_numpy(camera.rays()).double()
    out = torch.zeros(depth.shape, dtype=torch.bool)
    for index, row in enumerate(rows):
        points = rays * depth[index, ..., None].double()
        for past in range(row):
            move = torch.from_numpy(np.linalg.inv(past_poses[past]) @ at[index])
            x, y, z = (points @ move[:3, :3].T + move[:3, 3]).unbind(-1)
            z_safe = z.clamp_min(1e-3)
            u = 2 * (x / z_safe * past_camera.fx + past_camera.cx) / (past_camera.width - 1) - 1
            v = 2 * (y / z_safe * past_camera.fy + past_camera.cy) / (past_camera.height - 1) - 1
            grid = torch.stack([u, v], dim=-1).float()[None]
            limits = torch.cat([near[past], far[past]])[None]
            low, high = functional.grid_sample(limits, grid, mode="nearest", align_corners=True)[0]
            inside = (grid[0].abs() <= 1).all(-1) & (z > 1e-3)
            out[index] |= inside & ((low - z).abs() < SAME_SURFACE * z) & ((high - z).abs() < SAME_SURFACE * z)
    return out & (depth > 0) & ~torch.isin(instance, moving)


def _window(painted: torch.Tensor, scale: float, full: Camera, random: Random) -> tuple[int, int] | None:
    """Top left corner of a window with many pixels to paint; None if there are too few.

    Args:
        painted: (h, w) bool, in an image that is smaller by `scale`.
        scale: factor.
        full: camera of the whole image.
        random: random number generator.
    """
    size = max(1, round(HEIGHT_PX / scale)), max(1, round(WIDTH_PX / scale))
    share = functional.avg_pool2d(painted[None, None].float(), size, stride=1)[0, 0]
    share = share[:, : int((full.width - WINDOW_PX) / scale) + 1]
    if float(share.max()) * HEIGHT_PX * WIDTH_PX < 2 * MIN_PAINTED_PX:
        return None
    noise = np.random.default_rng(random.integer(0, 2**31 - 1)).random(tuple(share.shape), dtype=np.float32)
    chosen = share * (0.5 + torch.from_numpy(noise))  # not always where there is most
    y, x = divmod(int(chosen.argmax()), share.shape[1])
    return min(round(x * scale), full.width - WINDOW_PX), min(round(y * scale), full.height - HEIGHT_PX)
