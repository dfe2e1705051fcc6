"""Sensor model: noise, white balance and exposure of a colour camera, and depth of a stereo sensor.

noisy = add_noise(frames, camera, seed=3)
noisy = add_noise(frames, camera, seed=3, noise=SensorNoise.draw(Random(3)))
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch.nn import functional

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.scenes.raytracing.primitives import Random
from worldstereo_ros.scenes.raytracing.scene import SceneFrames
from worldstereo_ros.utils.errors import InputError

GAMMA = 2.2


@dataclass(frozen=True)
class SensorNoise:
    """Parameters of a colour camera and a stereo depth sensor. A field of 0 disables its effect (`NO_NOISE`: all).

    Attributes:
        exposure: exposure offset, stops.
        drift: standard deviation of the exposure between frames, stops.
        white_balance: gains of red and blue relative to green.
        vignetting: fraction of the light lost in the corners.
        shot: standard deviation of shot noise at full scale; it grows with the square root of the light.
        read: standard deviation of read noise, fraction of full scale.
        baseline: baseline of the depth sensor, metres; its focal length is that of the camera.
        disparity: standard deviation of the matching error, pixels. The depth error grows with the square of the depth.
        patch: size of the matching window, pixels, over which errors are correlated.
        subpixel: disparity steps per pixel; 0 = not quantised.
        near, far: depth range, metres.
        slant: cosine between ray and surface normal below which the dropout probability rises.
        edge: probability of missing depth at depth discontinuities.
        dropout: probability of missing depth anywhere.
    """

    exposure: float = 0.0
    drift: float = 0.03
    white_balance: tuple[float, float] = (1.0, 1.0)
    vignetting: float = 0.15
    shot: float = 0.02
    read: float = 0.004
    baseline: float = 0.075
    disparity: float = 0.08
    patch: int = 3
    subpixel: int = 16
    near: float = 0.2
    far: float = 10.0
    slant: float = 0.2
    edge: float = 0.6
    dropout: float = 0.005

    def __post_init__(self) -> None:
        shares = {"vignetting": self.vignetting, "edge": self.edge, "dropout": self.dropout, "slant": self.slant}
        for name, value in shares.items():
            if not 0 <= value <= 1:
                raise InputError(f"{name} is {value}; expected a number from 0 to 1.")
        if min(self.shot, self.read, self.disparity, self.drift, self.subpixel) < 0:
            raise InputError("shot, read, disparity, drift and subpixel must not be negative.")
        if not 0 <= self.near < self.far or self.baseline <= 0 or self.patch < 1:
            raise InputError(
                f"near is {self.near}, far {self.far}, baseline {self.baseline} and patch {self.patch}; expected "
                "0 <= near < far, baseline > 0 and patch >= 1."
            )
        if min(self.white_balance) <= 0:
            raise InputError(f"white_balance is {self.white_balance}; expected two gains above 0.")

    @staticmethod
    def draw(random: Random) -> SensorNoise:
        """Draw a random sensor, from nearly noise-free to poor."""
        bad = random.uniform(0.2, 1.6)
        return SensorNoise(
            exposure=random.normal(0.3),
            drift=0.04 * bad,
            white_balance=(1 + random.normal(0.06), 1 + random.normal(0.06)),
            vignetting=random.uniform(0.0, 0.35),
            shot=0.02 * bad,
            read=0.005 * bad,
            baseline=random.uniform(0.05, 0.12),
            disparity=0.08 * bad,
            patch=random.choice([1, 3, 3, 5]),
            subpixel=random.choice([8, 16, 32]),
            far=random.uniform(6.0, 12.0),
            slant=random.uniform(0.1, 0.3),
            edge=random.uniform(0.3, 0.9),
            dropout=0.01 * random.uniform(0.0, 1.0) * bad,
        )


NO_NOISE = SensorNoise(drift=0.0, vignetting=0.0, shot=0.0, read=0.0, disparity=0.0, subpixel=0, near=0.0, far=math.inf,
                   slant=0.0, edge=0.0, dropout=0.0)  # fmt: skip


def add_noise(
    frames: SceneFrames,
    camera: Camera,
    seed: int,
    *,
    noise: SensorNoise | None = None,
    world_from_camera: torch.Tensor | None = None,
) -> SceneFrames:
    """Add sensor noise to rendered frames.

    Args:
        frames: F exact frames.
        camera: intrinsics of the frames.
        seed: random seed; the same seed and frames give the same noise on every device.
        noise: the sensor; None = `SensorNoise()`.
        world_from_camera: (F, 4, 4) poses of the frames. Without them `slant` has no effect, because normals are in
            world axes.

    Returns:
        Frames with noisy image and depth (0 = missing); normals and ids are unchanged.

    Raises:
        InputError: the number of poses does not match.
    """
    noise = noise or SensorNoise()
    generator = torch.Generator().manual_seed(int(seed) & 0x7FFF_FFFF_FFFF_FFFF)
    image = noisy_image(frames.image, noise, generator)
    cosine = None
    if world_from_camera is not None:
        cosine = _cosines(frames, camera, world_from_camera)
    return replace(frames, image=image, depth=noisy_depth(frames.depth, camera, noise, generator, cosine))


def noisy_image(image: torch.Tensor, noise: SensorNoise, generator: torch.Generator) -> torch.Tensor:
    """Apply exposure, white balance, vignetting and noise to images (F, H, W, 3) uint8."""
    F, H, W, _ = image.shape
    device = image.device
    light = (image.float() / 255).pow(GAMMA)
    stops = noise.exposure + noise.drift * torch.randn(F, generator=generator)
    gain = torch.exp2(stops)[:, None] * torch.tensor([noise.white_balance[0], 1.0, noise.white_balance[1]])
    light = light * gain.to(device)[:, None, None]
    y, x = torch.meshgrid(torch.linspace(-1, 1, H), torch.linspace(-1, 1, W), indexing="ij")
    light = light * (1 - noise.vignetting * (0.5 * (x * x + y * y)).square()).to(device)[None, :, :, None]
    # Drawn on the CPU: every device gets the same noise.
    noise_draw = torch.randn(image.shape, generator=generator).to(device)
    light = light + noise_draw * (noise.read**2 + noise.shot**2 * light.clamp_min(0)).sqrt()
    return (light.clamp(0, 1).pow(1 / GAMMA) * 255 + 0.5).to(torch.uint8)


def noisy_depth(
    depth: torch.Tensor,
    camera: Camera,
    noise: SensorNoise,
    generator: torch.Generator,
    cosine: torch.Tensor | None = None,
) -> torch.Tensor:
    """Apply the stereo error model to depth.

    Args:
        depth: (F, H, W) metres, 0 = unknown.
        camera: intrinsics.
        noise: the sensor.
        generator: random generator on the CPU.
        cosine: (F, H, W) cosine between ray and surface normal; None disables dropout by slant.

    Returns:
        (F, H, W) metres, 0 = missing.
    """
    F, H, W = depth.shape
    device, focal_baseline = depth.device, camera.fx * noise.baseline
    match_error = torch.randn(F, 1, H, W, generator=generator)
    if noise.patch > 1:
        # Averaging over the window correlates the errors; the factor restores their variance.
        match_error = functional.avg_pool2d(
            functional.pad(match_error, [noise.patch // 2] * 4, mode="replicate"), noise.patch, 1
        )
        match_error = match_error[:, :, :H, :W] * noise.patch
    draws = torch.rand(3, F, H, W, generator=generator).to(device)
    valid = depth > 0
    disparity = focal_baseline / depth.clamp_min(1e-6) + noise.disparity * match_error[:, 0].to(device)
    if noise.subpixel:
        disparity = (disparity * noise.subpixel).round() / noise.subpixel
    valid &= disparity > 0
    measured = focal_baseline / disparity.clamp_min(1e-9) if noise.disparity or noise.subpixel else depth
    valid &= (measured >= noise.near) & (measured <= noise.far) & (draws[0] >= noise.dropout)
    if noise.edge:
        high = functional.max_pool2d(depth[:, None], 3, 1, 1)[:, 0]
        low = -functional.max_pool2d(-depth[:, None], 3, 1, 1)[:, 0]
        valid &= ~((high - low > 0.04 * depth + 0.02) & (draws[1] < noise.edge))
    if cosine is not None and noise.slant:
        valid &= draws[2] < cosine / noise.slant
    return torch.where(valid, measured, torch.zeros_like(depth))


def motion_blur(
    frames: SceneFrames, camera: Camera, world_from_camera: torch.Tensor, *, shutter: float = 0.3, samples: int = 7
) -> SceneFrames:
    """Blur images by the camera motion to the next frame; depth, normals and ids are unchanged.

    Each pixel is averaged along its image motion. Objects are assumed to be static.

    Args:
        frames: F frames of a path.
        camera: intrinsics of the frames.
        world_from_camera: (F, 4, 4) poses of the frames.
        shutter: exposure time as a fraction of the time to the next frame, 0..1.
        samples: number of samples along the motion.

    Raises:
        InputError: the number of poses does not match, or the shutter is outside 0..1.
    """
    if not 0 <= shutter <= 1:
        raise InputError(f"shutter is {shutter}; expected a number from 0 to 1.")
    poses = _poses(frames, world_from_camera)
    F, H, W = frames.depth.shape
    if F < 2 or shutter == 0:
        return frames
    step = torch.linalg.inv(poses[1:]) @ poses[:-1]
    # The last frame repeats the motion of the one before.
    step = torch.cat([step, step[-1:]])
    rays = torch.from_numpy(camera.rays()).double().to(poses.device)
    # Pixels without depth (sky) are far away.
    points = torch.where(frames.depth > 0, frames.depth, 1e4).double()[..., None] * rays
    next_points = torch.einsum("fij,fhwj->fhwi", step[:, :3, :3], points) + step[:, None, None, :3, 3]
    ahead = next_points[..., 2:].clamp_min(0.05)
    scale = rays.new_tensor([camera.fx, camera.fy])
    pixel_motion = (next_points[..., :2] / ahead - rays[..., :2]) * scale * shutter
    # At most a twelfth of the image width: the linear approximation fails for larger motion.
    length = pixel_motion.norm(dim=-1, keepdim=True)
    pixel_motion = (pixel_motion * (W / 12 / length.clamp_min(W / 12))).float()
    y, x = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    base = torch.stack([x, y], dim=-1).float().to(poses.device)
    light = (frames.image.float() / 255).pow(GAMMA).permute(0, 3, 1, 2)
    size = base.new_tensor([W, H])
    total = torch.zeros_like(light)
    for k in range(samples):
        at = base - pixel_motion * ((k + 0.5) / samples - 0.5)
        total += functional.grid_sample(
            light, (2 * at + 1) / size - 1, mode="bilinear", padding_mode="border", align_corners=False
        )
    blurred = (total / samples).clamp(0, 1).pow(1 / GAMMA).permute(0, 2, 3, 1)
    return replace(frames, image=(blurred * 255 + 0.5).to(torch.uint8))


def _poses(frames: SceneFrames, world_from_camera: torch.Tensor) -> torch.Tensor:
    """Validated poses, (F, 4, 4) float64 on the device of the frames."""
    poses = torch.as_tensor(world_from_camera, dtype=torch.float64).to(frames.depth.device)
    if poses.shape != (len(frames.depth), 4, 4):
        raise InputError(
            f"The poses have shape {tuple(poses.shape)}; expected ({len(frames.depth)}, 4, 4), one for each frame."
        )
    return poses


def _cosines(frames: SceneFrames, camera: Camera, world_from_camera: torch.Tensor) -> torch.Tensor:
    """(F, H, W) cosine between the rays and the surface normals, 0 without a surface."""
    rotation = _poses(frames, world_from_camera)[:, :3, :3].float()
    rays = functional.normalize(torch.from_numpy(camera.rays()).float().to(rotation.device), dim=-1)
    return -(torch.einsum("fij,hwj->fhwi", rotation, rays) * frames.normals).sum(-1).clamp(-1, 0)
