"""Single views with depth for the depth network.

Views are rotated and zoomed as if another camera had been at the same position, which exact depth allows. Colours,
sharpness and texture are augmented far beyond real cameras, so that the network learns shape rather than the style of
these worlds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch.nn import functional

from worldstereo_ros.models.depth_network import CANONICAL_FOCAL_PX
from worldstereo_ros.training.data.dataset import WorldDataset, augment_colours
from worldstereo_ros.training.data.world_files import FINE_SCALE, RenderedWorld

ORIGINAL_PROB = 0.25  # probability that a view is neither rotated nor zoomed
PITCH_DEG, YAW_DEG, ROLL_DEG = 9.0, 5.0, 4.0  # standard deviations of the rotation
MAX_ZOOM = 2.2
FINE_ZOOM = 1.35  # from this zoom on, fine views are sampled
CENTRE_SHIFT_PX = 2.0  # standard deviation of the principal point
NATURAL_COLOURS_PROB = 0.4  # probability that an image gets the colour augmentation of cameras only


@dataclass(frozen=True)
class DepthBatch:
    """N images with depth.

    Attributes:
        images: (N, 3, h, w) uint8.
        depth: (N, h, w) float32 metres, 0 = no surface.
        focal: (N,) float32 pixels.
        centre: (N, 2) float32 principal points, x and y in pixels.
    """

    images: torch.Tensor
    depth: torch.Tensor
    focal: torch.Tensor
    centre: torch.Tensor

    def log_depth(self) -> torch.Tensor:
        """(N, h, w) target of the network: log depth at the canonical focal length; undefined without a surface."""
        return self.depth.clamp_min(1e-3).log() - (self.focal / CANONICAL_FOCAL_PX).log()[:, None, None]


@dataclass(frozen=True)
class DepthSampler:
    """Samples `count` images with depth; `clean`: without augmentation, for validation. See `loaders.BatchSampler`."""

    count: int
    clean: bool = False

    def __call__(self, dataset: WorldDataset, random: np.random.Generator, device: torch.device) -> DepthBatch:
        """Samples a batch."""
        views = [sample_view(world, random, clean=self.clean) for world in dataset.sample_worlds(self.count, random)]
        images, depth, focal, centre = (np.stack(parts) for parts in zip(*views, strict=True))
        return DepthBatch(
            torch.from_numpy(images).permute(0, 3, 1, 2).to(device),
            torch.from_numpy(depth).to(device),
            torch.from_numpy(focal).to(device),
            torch.from_numpy(centre).to(device),
        )

    def pack(self, batch: DepthBatch) -> dict[str, np.ndarray]:
        """Packs depth in half precision, as in the files of worlds."""
        return {**{name: value.numpy() for name, value in vars(batch).items()}, "depth": batch.depth.half().numpy()}

    def unpack(self, packed: dict[str, torch.Tensor]) -> DepthBatch:
        """Unpacks a batch."""
        return DepthBatch(**{**packed, "depth": packed["depth"].float()})


def sample_view(
    world: RenderedWorld, random: np.random.Generator, *, clean: bool = False
) -> tuple[np.ndarray, np.ndarray, np.float32, np.ndarray]:
    """Samples a view.

    Args:
        world: a rendered world.
        random: random number generator.
        clean: a view as it was rendered; else most are rotated, zoomed and mirrored.

    Returns:
        Image (h, w, 3) uint8, depth (h, w) in metres, focal length and principal point (2,) in pixels.
    """
    height, width = world.image.shape[-2:]
    f, cx, cy = float(world.matrix[0, 0]), float(world.matrix[0, 2]), float(world.matrix[1, 2])
    rotation, zoom = np.eye(3), 1.0
    if not clean and random.random() > ORIGINAL_PROB:
        angles = random.normal(0, (PITCH_DEG, YAW_DEG, ROLL_DEG))
        zoom = float(np.exp(random.uniform(0, 0.8 * np.log(MAX_ZOOM))))
        rotation = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    middle = np.array([(width - 1) / 2, (height - 1) / 2])
    centre = middle if clean else middle + random.normal(0, CENTRE_SHIFT_PX, 2)
    corners = np.array([[0, 0], [width - 1, 0], [0, height - 1], [width - 1, height - 1]], dtype=np.float64)

    def rays(pixels: np.ndarray) -> np.ndarray:
        normalised = (pixels - centre) / (f * zoom)
        return np.concatenate([normalised, np.ones((*normalised.shape[:-1], 1))], axis=-1) @ rotation.T

    while True:  # zoom in until all pixels lie inside the rendered view
        ray = rays(corners)
        source_uv = ray[:, :2] / np.maximum(ray[:, 2:], 1e-3) * f + (cx, cy)
        if (ray[:, 2] > 0).all() and (source_uv > -1.5).all() and (source_uv < np.array([width, height]) + 0.5).all():
            break
        if zoom > MAX_ZOOM:
            rotation, zoom, centre = np.eye(3), 1.0, np.array([cx, cy])
            break
        zoom *= 1.08
    fine = zoom >= FINE_ZOOM
    images, depths = (world.fine_image, world.fine_depth) if fine else (world.image, world.depth)
    index = int(random.integers(len(images)))
    source, truth = images[index].permute(1, 2, 0).numpy(), depths[index].float().numpy()
    if zoom == 1.0 and np.array_equal(rotation, np.eye(3)):
        centre = np.array([cx, cy])  # a shift alone would need pixels outside the rendered view
        image, depth = np.ascontiguousarray(source), truth
    else:
        pixels = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(np.float64)
        ray = rays(pixels)
        source_uv = ray[..., :2] / ray[..., 2:] * f + (cx, cy)
        if fine:
            source_uv = (source_uv + 0.5) * FINE_SCALE - 0.5
        source_map = source_uv.astype(np.float32)
        image = cv2.remap(
            np.ascontiguousarray(source), source_map, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
        )
        depth = cv2.remap(truth, source_map, None, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
        # Depth is measured along the optical axis, which has rotated.
        depth = (depth / ray[..., 2]).astype(np.float32)
    if not clean and random.random() < 0.5:
        image, depth = image[:, ::-1], depth[:, ::-1]
        centre = np.array([width - 1 - centre[0], centre[1]])
    return image.copy(), depth.copy(), np.float32(f * zoom), centre.astype(np.float32)


def augment_appearance(images: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
    """Augments colours, sharpness and texture.

    All images get the augmentation of `augment_colours`, most of them also random hue, grey scale, blur, contrast,
    lighting and texture; a quarter has an occluding rectangle.

    Args:
        images: (N, 3, h, w) float in [0, 1].
        random: random number generator.

    Returns:
        Images of the same shape in [-1, 1].
    """
    count, _, height, width = images.shape
    generator = torch.Generator(images.device).manual_seed(int(random.integers(2**62)))

    def per_image(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).to(images).view(count, *(1,) * 3)

    def noise(channels: int, cell: int) -> torch.Tensor:
        shape = (count, channels, -(-height // cell) + 1, -(-width // cell) + 1)
        grain = torch.randn(shape, generator=generator, device=images.device, dtype=images.dtype)
        return functional.interpolate(grain, size=(height, width), mode="bilinear", align_corners=False)

    # Hue: a rotation about the grey axis, by a small angle for half of the images.
    angles = np.where(random.random(count) < 0.5, random.normal(0, 0.2, count), random.uniform(-np.pi, np.pi, count))
    hue = Rotation.from_rotvec(angles[:, None] * np.ones(3) / math.sqrt(3)).as_matrix()
    grey = (random.random(count) < 0.15)[:, None, None]
    colours = torch.from_numpy(np.where(grey, np.full((3, 3), 1 / 3), hue)).to(images)
    out = torch.einsum("nij,njhw->nihw", colours, images)
    # Lighting of low spatial frequency, texture of high.
    light = noise(1, int(random.choice([16, 32]))) * per_image(random.uniform(0, 0.35, count))
    texture = noise(3, int(random.choice([2, 4, 8]))) * per_image(0.2 * random.random(count) ** 2)
    out = out * torch.exp(light + texture)
    # Contrast, lower or higher.
    mean = out.mean((1, 2, 3), keepdim=True)
    out = (mean + (out - mean) * per_image(np.exp(random.normal(0, 0.25, count)))).clamp(0, 1)
    blurred = torch.from_numpy(random.random(count) < 0.25).to(out.device)
    if bool(blurred.any()):
        once = functional.avg_pool2d(out[blurred], 3, 1, 1, count_include_pad=False)
        out[blurred] = functional.avg_pool2d(once, 3, 1, 1, count_include_pad=False) if random.random() < 0.4 else once
    natural = torch.from_numpy(random.random(count) < NATURAL_COLOURS_PROB).to(out.device)
    out = augment_colours(torch.where(natural[:, None, None, None], images, out), random)
    for index in np.flatnonzero(random.random(count) < 0.25):
        h, w = (int(random.uniform(0.08, 0.35) * n) for n in (height, width))
        y, x = int(random.integers(height - h + 1)), int(random.integers(width - w + 1))
        colour = torch.from_numpy(random.uniform(-1, 1, (3, 1, 1))).to(out)
        out[index, :, y : y + h, x : x + w] = colour
    return out
