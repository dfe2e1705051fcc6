"""Short clips of both eyes of a moving camera, rendered from procedural worlds or read from a mono video.

A clip is a window of a larger image, cut where the other eye sees what the camera does not, at the pixel density of
the whole image: holes are as wide and edges as sharp as at inference, and no ray is wasted on the rest.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch.nn import functional

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.pipelines.stereo.torch_warp import warp_to_eye
from worldstereo_ros.scenes import KINDS, PATHS, Scene, SceneFrames, add_moving_objects, make_path, make_scene, seed_of
from worldstereo_ros.scenes.raytracing.packing import PackedScenes, pack
from worldstereo_ros.scenes.raytracing.primitives import Random
from worldstereo_ros.scenes.raytracing.render import render_packed
from worldstereo_ros.utils.errors import InputError

HEIGHT_PX, WIDTH_PX, MARGIN_PX = 96, 128, 64  # of a crop; a window is wider by the largest disparity
WINDOW_PX = WIDTH_PX + MARGIN_PX
MAX_DISPARITY_PX = 56.0  # of nearly all pixels of a clip
BASE_M = (0.06, 0.25)
MIN_BASE_M = 0.03
FULL_WIDTHS = (320, 320, 480, 640, 640)  # of the image that a window is cut from
FOV_DEG = (55.0, 95.0)
STEP_M, TURN_RAD = (0.015, 0.15), 0.1  # between frames
FRAME_S = (0.033, 0.2)
MAX_MOVING_OBJECTS = 3
NEAR_QUANTILE = 0.98
SEARCH_SCALE = 4  # windows are searched for in images smaller by this
INVALID_FLOW = 1e4  # of pixels that the frame before does not show
FLOW_TOLERANCE = 0.03  # relative difference of depths of one surface point


@dataclass(frozen=True)
class StereoClip:
    """T frames of a camera and of the eye to its right; tensors of one window of the images.

    Attributes:
        image: (T, 3, H, W + margin) uint8, the left eye.
        inverse: (T, H, W + margin) float16, pixels of disparity per metre of base; 0 = infinitely far.
        flow: (T, 2, H, W + margin) float16, x and y from a pixel to its place in the frame before, `INVALID_FLOW`
            where that does not show it, and in the first frame.
        other, other_inverse, other_flow: the same of the right eye, at `base`; zeros if `base` is 0.
        base: () float32 metres; 0: there is no true other eye.
    """

    image: torch.Tensor
    inverse: torch.Tensor
    flow: torch.Tensor
    other: torch.Tensor
    other_inverse: torch.Tensor
    other_flow: torch.Tensor
    base: torch.Tensor

    def arrays(self) -> dict[str, np.ndarray]:
        """The tensors as arrays on the CPU, to hand to another process."""
        return {f.name: getattr(self, f.name).cpu().numpy() for f in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> StereoClip:
        """The inverse of `arrays`."""
        return cls(**{name: torch.from_numpy(array) for name, array in arrays.items()})


def render_clips(
    split: str,
    index: int,
    *,
    frames: int,
    clips: int,
    device: torch.device | str = "cpu",
    supersample: int = 2,
    light: str = "soft",
) -> list[StereoClip]:
    """Renders clips of one world; deterministic.

    Args:
        split: training, validation or test (`scenes.splits`).
        index: number of the world.
        frames: frames of a clip.
        clips: clips of the world, half of them on each of two paths.
        device: device of the renderer.
        supersample, light: see `render_scene`.

    Returns:
        Clips on the device; fewer than asked for where everything is too near or nothing is hidden.
    """
    random = Random(104_729 * index + 17)
    scene = with_moving_objects(make_scene(random.choice(list(KINDS)), seed_of(split, index)), random)
    packed = pack([scene], device=device, light=light)
    paths = min(2, clips)
    found = []
    for path in range(paths):
        count = -(-clips // paths)
        step = STEP_M[0] * (STEP_M[1] / STEP_M[0]) ** random.uniform(0, 1)
        with suppress(InputError):  # no free path
            poses = make_path(
                scene, random.choice(list(PATHS)), count * frames, seed=path, step=step,
                turn=TURN_RAD * random.uniform(0.1, 1),
            )  # fmt: skip
            start, period = random.uniform(0, 20), random.uniform(*FRAME_S)
            for clip in range(count):
                rows = np.arange(clip * frames, (clip + 1) * frames)
                made = _clip(scene, packed, poses[rows], start + period * rows, random, supersample)
                if made is not None:
                    found.append(made)
    return found[:clips]


def with_moving_objects(scene: Scene, random: Random) -> Scene:
    """The scene with some moving objects, as many as find room of a random number."""
    for count in range(random.integer(0, MAX_MOVING_OBJECTS), 0, -1):
        with suppress(InputError):
            return add_moving_objects(scene, count)
    return scene


def _clip(
    scene: Scene, packed: PackedScenes, poses: np.ndarray, times: np.ndarray, random: Random, supersample: int
) -> StereoClip | None:
    device = packed.geometry.device
    width = random.choice(list(FULL_WIDTHS))
    full = Camera.from_fov(width, width * 3 // 4, math.radians(random.uniform(*FOV_DEG)))
    base = random.uniform(*BASE_M)
    middle = len(poses) // 2
    small = full.resized(full.width // SEARCH_SCALE, full.height // SEARCH_SCALE)
    seen = render_frames(packed, small, poses[middle : middle + 1], times[middle : middle + 1], 1)
    inverse = inverse_depth(seen.depth, full.fx)
    base = min(base, MAX_DISPARITY_PX / max(float(torch.quantile(inverse.flatten(), NEAR_QUANTILE)), 1e-3))
    if base < MIN_BASE_M:
        return None
    found = _window(inverse * base / SEARCH_SCALE, full, random)
    if found is None:
        return None
    camera = Camera(WINDOW_PX, HEIGHT_PX, full.fx, full.fy, full.cx - found[0], full.cy - found[1])
    right = poses.copy()
    right[:, :3, 3] += base * poses[:, :3, 0]
    both = render_frames(packed, camera, np.concatenate([poses, right]), np.concatenate([times, times]), supersample)
    moving = torch.tensor([mover.instance for mover in scene.moving_objects], device=device, dtype=torch.int32)
    parts = []
    for eye, at in zip((0, 1), (poses, right), strict=True):
        rows = slice(eye * len(poses), (eye + 1) * len(poses))
        depth = both.depth[rows]
        still = torch.ones_like(depth, dtype=torch.bool)
        if len(moving):
            still = ~torch.isin(both.instance[rows], moving)
        flow = flow_between(depth, still, camera, torch.from_numpy(at).to(device))
        image = both.image[rows].permute(0, 3, 1, 2).contiguous()
        parts.append((image, inverse_depth(depth, camera.fx).half(), flow.half()))
    return StereoClip(*parts[0], *parts[1], torch.tensor(base, device=device))


def render_frames(
    packed: PackedScenes, camera: Camera, poses: np.ndarray, times: np.ndarray, supersample: int
) -> SceneFrames:
    """Frames of the one packed scene from poses (F, 4, 4) at times (F,)."""
    table = torch.zeros(len(poses), dtype=torch.int64)
    return render_packed(packed, camera, torch.from_numpy(poses), table, supersample=supersample, times=times)


def inverse_depth(depth: torch.Tensor, focal: float) -> torch.Tensor:
    """Pixels of disparity per metre of base; 0 where nothing is met. It fits float16."""
    return torch.where(depth > 0, focal / depth.clamp_min(1e-3), 0.0).clamp_max(60_000.0)


def _window(disparity: torch.Tensor, full: Camera, random: Random) -> tuple[int, int] | None:
    """Top left corner of a window with many holes; None if nothing is hidden. `disparity` is (1, h, w), small."""
    hole = warp_to_eye(disparity[:, None], disparity).hole.float()
    size = HEIGHT_PX // SEARCH_SCALE, WIDTH_PX // SEARCH_SCALE
    share = functional.avg_pool2d(hole, size, stride=1)[0]
    columns = (full.width - WINDOW_PX) // SEARCH_SCALE + 1  # the window reaches farther right than the crop
    share = share[:, :columns]
    # Not always the place with the most holes: the network meets narrow ones, too.
    chosen = share + 0.5 * float(share.max()) * torch.from_numpy(
        np.random.default_rng(random.integer(0, 2**31 - 1)).random(tuple(share.shape), dtype=np.float32)
    ).to(share.device)
    if float(share.max()) <= 0:
        return None
    y, x = divmod(int(chosen.argmax()), share.shape[1])
    return min(x * SEARCH_SCALE, full.width - WINDOW_PX), min(y * SEARCH_SCALE, full.height - HEIGHT_PX)


def flow_between(depth: torch.Tensor, still: torch.Tensor, camera: Camera, poses: torch.Tensor) -> torch.Tensor:
    """(T, 2, H, W) flow to the frame before of still surfaces, see `StereoClip.flow`."""
    frames, height, width = depth.shape
    flow = depth.new_full((frames, 2, height, width), INVALID_FLOW)
    if frames < 2:
        return flow
    rays = torch.from_numpy(camera.rays()).to(depth.device).double()
    before_from_now = torch.linalg.inv(poses[:-1]) @ poses[1:]
    points = rays * depth[1:, ..., None].double()
    moved = torch.einsum("fij,fhwj->fhwi", before_from_now[:, :3, :3], points) + before_from_now[:, None, None, :3, 3]
    z = moved[..., 2].clamp_min(1e-3)
    u, v = moved[..., 0] / z * camera.fx + camera.cx, moved[..., 1] / z * camera.fy + camera.cy
    grid = torch.stack([2 * u / (width - 1) - 1, 2 * v / (height - 1) - 1], dim=-1).float()
    there = torch.stack([depth[:-1], still[:-1].float()], dim=1)
    sampled = functional.grid_sample(there, grid, mode="nearest", align_corners=True)
    inside = (grid.abs() <= 1).all(-1) & (moved[..., 2] > 1e-3)
    same = (sampled[:, 0] - z).abs() < FLOW_TOLERANCE * z
    valid = inside & same & (sampled[:, 1] > 0) & still[1:] & (depth[1:] > 0)
    y, x = torch.meshgrid(
        torch.arange(height, device=depth.device), torch.arange(width, device=depth.device), indexing="ij"
    )
    found = torch.stack([u - x, v - y], dim=1).float()
    flow[1:] = torch.where(valid[:, None], found, INVALID_FLOW)
    return flow
