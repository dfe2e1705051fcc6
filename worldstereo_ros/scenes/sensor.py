"""What a real camera makes of a perfect picture: noise, colour and exposure, and depth as a stereo sensor gives it.

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
    """A colour camera and a stereo depth sensor. Fields of 0 leave their part out; `NONE` leaves all of it out.

    Attributes:
        exposure: stops brighter (or darker, below 0).
        drift: stops by which the exposure of single frames differs, one standard deviation.
        white_balance: gains of red and of blue against green, 1 = right.
        vignetting: share of the light that is lost in the corners.
        shot: noise that grows with the square root of the light: its share at full scale.
        read: noise that does not, share of full scale.
        baseline: of the depth sensor, metres; its focal length is that of the camera.
        disparity: pixels by which a match is off, one standard deviation. In depth that grows with z squared.
        patch: pixels over which these errors hang together, as a matching window makes them.
        subpixel: steps a pixel of disparity is cut into; 0 = not rounded.
        near, far: metres outside of which there is no depth.
        slant: cosine between ray and surface below which depth goes missing more and more often.
        edge: chance that depth beside a jump of depth is missing.
        dropout: chance that it is missing anywhere.
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
                raise InputError(f"{name} is {value}; a number from 0 to 1 was expected.")
        if min(self.shot, self.read, self.disparity, self.drift, self.subpixel) < 0:
            raise InputError("shot, read, disparity, drift and subpixel are amounts; none of them can be negative.")
        if not 0 <= self.near < self.far or self.baseline <= 0 or self.patch < 1:
            raise InputError(
                f"near {self.near}, far {self.far}, baseline {self.baseline} and patch {self.patch} describe no "
                "sensor; 0 <= near < far, baseline > 0 and patch >= 1 were expected."
            )
        if min(self.white_balance) <= 0:
            raise InputError(f"white_balance is {self.white_balance}; two gains above 0 were expected.")

    @staticmethod
    def draw(random: Random) -> SensorNoise:
        """One of many cameras, from nearly clean to rather bad."""
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


NONE = SensorNoise(drift=0.0, vignetting=0.0, shot=0.0, read=0.0, disparity=0.0, subpixel=0, near=0.0, far=math.inf,
                   slant=0.0, edge=0.0, dropout=0.0)  # fmt: skip


def add_noise(
    frames: SceneFrames,
    camera: Camera,
    seed: int,
    *,
    noise: SensorNoise | None = None,
    world_from_camera: torch.Tensor | None = None,
) -> SceneFrames:
    """Frames as a sensor gives them.

    Args:
        frames: F exact frames.
        camera: that they were rendered with.
        seed: the same seed and frames give the same noise, on every device.
        noise: which sensor; None = an ordinary one.
        world_from_camera: (F, 4, 4), as for the frames. Without it depth is not missing where surfaces are seen at a
            slant: their normals are in world axes.

    Returns:
        frames with another image and depth (0 = missing); normals and ids stay exact.

    Raises:
        ValueError: poses of another number than the frames.
    """
    noise = noise or SensorNoise()
    generator = torch.Generator().manual_seed(int(seed) & 0x7FFF_FFFF_FFFF_FFFF)
    image = noisy_image(frames.image, noise, generator)
    cosine = None
    if world_from_camera is not None:
        cosine = _cosines(frames, camera, world_from_camera)
    return replace(frames, image=image, depth=noisy_depth(frames.depth, camera, noise, generator, cosine))


def noisy_image(image: torch.Tensor, noise: SensorNoise, generator: torch.Generator) -> torch.Tensor:
    """Pictures (F, H, W, 3) uint8 with another exposure, colour and noise, uint8 too."""
    F, H, W, _ = image.shape
    device = image.device
    light = (image.float() / 255).pow(GAMMA)
    stops = noise.exposure + noise.drift * torch.randn(F, generator=generator)
    gain = torch.exp2(stops)[:, None] * torch.tensor([noise.white_balance[0], 1.0, noise.white_balance[1]])
    light = light * gain.to(device)[:, None, None]
    y, x = torch.meshgrid(torch.linspace(-1, 1, H), torch.linspace(-1, 1, W), indexing="ij")
    light = light * (1 - noise.vignetting * (0.5 * (x * x + y * y)).square()).to(device)[None, :, :, None]
    # Drawn on the CPU, so that every device draws the same.
    grain = torch.randn(image.shape, generator=generator).to(device)
    light = light + grain * (noise.read**2 + noise.shot**2 * light.clamp_min(0)).sqrt()
    return (light.clamp(0, 1).pow(1 / GAMMA) * 255 + 0.5).to(torch.uint8)


def noisy_depth(
    depth: torch.Tensor,
    camera: Camera,
    noise: SensorNoise,
    generator: torch.Generator,
    cosine: torch.Tensor | None = None,
) -> torch.Tensor:
    """Depth (F, H, W) metres, 0 = none, as a stereo sensor measures it: off, in steps, and missing in places.

    `cosine` (F, H, W) is that between ray and surface; None = nothing goes missing for the slant.
    """
    F, H, W = depth.shape
    device, reach = depth.device, camera.fx * noise.baseline
    off = torch.randn(F, 1, H, W, generator=generator)
    if noise.patch > 1:
        # Averaged over the window, and as strong as before.
        off = functional.avg_pool2d(functional.pad(off, [noise.patch // 2] * 4, mode="replicate"), noise.patch, 1)
        off = off[:, :, :H, :W] * noise.patch
    lottery = torch.rand(3, F, H, W, generator=generator).to(device)
    known = depth > 0
    shift = reach / depth.clamp_min(1e-6) + noise.disparity * off[:, 0].to(device)
    if noise.subpixel:
        shift = (shift * noise.subpixel).round() / noise.subpixel
    known &= shift > 0
    measured = reach / shift.clamp_min(1e-9) if noise.disparity or noise.subpixel else depth
    known &= (measured >= noise.near) & (measured <= noise.far) & (lottery[0] >= noise.dropout)
    if noise.edge:
        high = functional.max_pool2d(depth[:, None], 3, 1, 1)[:, 0]
        low = -functional.max_pool2d(-depth[:, None], 3, 1, 1)[:, 0]
        known &= ~((high - low > 0.04 * depth + 0.02) & (lottery[1] < noise.edge))
    if cosine is not None and noise.slant:
        known &= lottery[2] < cosine / noise.slant
    return torch.where(known, measured, torch.zeros_like(depth))


def motion_blur(
    frames: SceneFrames, camera: Camera, world_from_camera: torch.Tensor, *, shutter: float = 0.3, samples: int = 7
) -> SceneFrames:
    """Pictures blurred by the camera's own way to the next frame; depth, normals and ids stay.

    Each pixel is averaged along the line on which what it shows would move. Things that move are taken to stand still.

    Args:
        frames: F frames of a path.
        camera: that they were rendered with; world_from_camera: (F, 4, 4).
        shutter: share of the time to the next frame that it is open, 0..1.
        samples: along the line.

    Raises:
        ValueError: poses of another number than the frames, or a shutter outside 0..1.
    """
    if not 0 <= shutter <= 1:
        raise InputError(f"The shutter is open for {shutter} of a frame; a number from 0 to 1 was expected.")
    poses = _poses(frames, world_from_camera)
    F, H, W = frames.depth.shape
    if F < 2 or shutter == 0:
        return frames
    step = torch.linalg.inv(poses[1:]) @ poses[:-1]
    # The last frame goes on as the one before it.
    step = torch.cat([step, step[-1:]])
    rays = torch.from_numpy(camera.rays()).double().to(poses.device)
    # What is not hit is far away.
    far = torch.where(frames.depth > 0, frames.depth, 1e4).double()[..., None] * rays
    there = torch.einsum("fij,fhwj->fhwi", step[:, :3, :3], far) + step[:, None, None, :3, 3]
    ahead = there[..., 2:].clamp_min(0.05)
    scale = rays.new_tensor([camera.fx, camera.fy])
    way = (there[..., :2] / ahead - rays[..., :2]) * scale * shutter
    # No more than a twelfth of the picture: beyond that the straight line is no longer near the truth.
    longest = way.norm(dim=-1, keepdim=True)
    way = (way * (W / 12 / longest.clamp_min(W / 12))).float()
    y, x = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    base = torch.stack([x, y], dim=-1).float().to(poses.device)
    light = (frames.image.float() / 255).pow(GAMMA).permute(0, 3, 1, 2)
    size = base.new_tensor([W, H])
    total = torch.zeros_like(light)
    for k in range(samples):
        at = base - way * ((k + 0.5) / samples - 0.5)
        total += functional.grid_sample(
            light, (2 * at + 1) / size - 1, mode="bilinear", padding_mode="border", align_corners=False
        )
    blurred = (total / samples).clamp(0, 1).pow(1 / GAMMA).permute(0, 2, 3, 1)
    return replace(frames, image=(blurred * 255 + 0.5).to(torch.uint8))


def _poses(frames: SceneFrames, world_from_camera: torch.Tensor) -> torch.Tensor:
    """(F, 4, 4) float64 where the frames are."""
    poses = torch.as_tensor(world_from_camera, dtype=torch.float64).to(frames.depth.device)
    if poses.shape != (len(frames.depth), 4, 4):
        raise InputError(
            f"The poses have shape {tuple(poses.shape)}; ({len(frames.depth)}, 4, 4) was expected, one for each frame."
        )
    return poses


def _cosines(frames: SceneFrames, camera: Camera, world_from_camera: torch.Tensor) -> torch.Tensor:
    """(F, H, W) cosine between the rays and the surfaces they meet, 0 where they meet none."""
    turn = _poses(frames, world_from_camera)[:, :3, :3].float()
    rays = functional.normalize(torch.from_numpy(camera.rays()).float().to(turn.device), dim=-1)
    return -(torch.einsum("fij,hwj->fhwi", turn, rays) * frames.normals).sum(-1).clamp(-1, 0)
