"""The depth network: metres of one picture, learnt from views of the worlds and their exact depth.

Its stage needs no other and no other needs it. Views are turned and zoomed as if another lens had looked elsewhere from
the same place, which a picture with exact depth allows; colours, sharpness and texture are disguised far beyond what
cameras do, so that what is learnt is shape and not the look of these worlds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch.nn import functional

from worldstereo_ros.models.depth_network import CANONICAL_FOCAL, DepthMaps
from worldstereo_ros.training.data.dataset import WorldDataset, as_uint8, augment_colours, sheet
from worldstereo_ros.training.data.world_files import FINE, RenderedWorld
from worldstereo_ros.training.run_folder import Run
from worldstereo_ros.training.trainer import ParameterGroup, parameters_of
from worldstereo_ros.visualization.images import depth_image

AS_IT_IS = 0.25  # share of the views that are neither turned nor zoomed
PITCH, YAW, ROLL = 9.0, 5.0, 4.0  # degrees, deviation of turns
MOST_ZOOM = 2.2
FINE_FROM = 1.35  # zoom from which on the finer views are looked at
SHIFT = 2.0  # pixels, deviation of the principal point from the middle
PLAIN = 0.4  # share of the pictures that are as a camera gives them
# Weights beside the absolute error of the logarithm: uncertainty, anything there, edges, shape up to scale.
LIKELIHOOD, HIT, GRADIENT, RELATIVE = 0.2, 0.2, 0.5, 0.5
FAR = 8.0  # metres, of the colours of pictures to look at
LEVELS = 4  # sizes at which edges are compared, each half of the one before


@dataclass(frozen=True)
class DepthBatch:
    """N pictures with their depth.

    Attributes:
        images: (N, 3, h, w) uint8.
        depth: (N, h, w) float32 metres, 0 = nothing hit.
        focal: (N,) float32 pixels.
        centre: (N, 2) float32 principal points, x and y in pixels.
    """

    images: torch.Tensor
    depth: torch.Tensor
    focal: torch.Tensor
    centre: torch.Tensor

    def log_depth(self) -> torch.Tensor:
        """(N, h, w) what the network should say; where nothing was hit it means nothing."""
        return self.depth.clamp_min(1e-3).log() - (self.focal / CANONICAL_FOCAL).log()[:, None, None]


@dataclass(frozen=True)
class DepthSampler:
    """`count` pictures with depth; `clean`: views as they are, for validation. See `loading.BatchSampler`."""

    count: int
    clean: bool = False

    def __call__(self, dataset: WorldDataset, random: np.random.Generator, device: torch.device) -> DepthBatch:
        """Draws them."""
        views = [draw_view(world, random, clean=self.clean) for world in dataset.of_one_size(self.count, random)]
        pictures, depth, focal, centre = (np.stack(parts) for parts in zip(*views, strict=True))
        return DepthBatch(
            torch.from_numpy(pictures).permute(0, 3, 1, 2).to(device),
            torch.from_numpy(depth).to(device),
            torch.from_numpy(focal).to(device),
            torch.from_numpy(centre).to(device),
        )

    def pack(self, batch: DepthBatch) -> dict[str, np.ndarray]:
        """As arrays, depth in half precision, as the worlds have it."""
        return {**{name: value.numpy() for name, value in vars(batch).items()}, "depth": batch.depth.half().numpy()}

    def unpack(self, packed: dict[str, torch.Tensor]) -> DepthBatch:
        """What was packed."""
        return DepthBatch(**{**packed, "depth": packed["depth"].float()})


def draw_view(
    world: RenderedWorld, random: np.random.Generator, *, clean: bool = False
) -> tuple[np.ndarray, np.ndarray, np.float32, np.ndarray]:
    """A picture (h, w, 3) uint8, its depth (h, w) metres, focal length and principal point (2,) in pixels.

    Args:
        world: where.
        random: draws.
        clean: a view as it was photographed; else most are turned, zoomed and mirrored.
    """
    height, width = world.image.shape[-2:]
    f, cx, cy = float(world.matrix[0, 0]), float(world.matrix[0, 2]), float(world.matrix[1, 2])
    turn, zoom = np.eye(3), 1.0
    if not clean and random.random() > AS_IT_IS:
        angles = random.normal(0, (PITCH, YAW, ROLL))
        zoom = float(np.exp(random.uniform(0, 0.8 * np.log(MOST_ZOOM))))
        turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    middle = np.array([(width - 1) / 2, (height - 1) / 2])
    centre = middle if clean else middle + random.normal(0, SHIFT, 2)
    corners = np.array([[0, 0], [width - 1, 0], [0, height - 1], [width - 1, height - 1]], dtype=np.float64)

    def rays(pixels: np.ndarray) -> np.ndarray:
        flat = (pixels - centre) / (f * zoom)
        return np.concatenate([flat, np.ones((*flat.shape[:-1], 1))], axis=-1) @ turn.T

    while True:  # closer, until all of it was photographed
        ray = rays(corners)
        seen = ray[:, :2] / np.maximum(ray[:, 2:], 1e-3) * f + (cx, cy)
        if (ray[:, 2] > 0).all() and (seen > -1.5).all() and (seen < np.array([width, height]) + 0.5).all():
            break
        if zoom > MOST_ZOOM:
            turn, zoom, centre = np.eye(3), 1.0, np.array([cx, cy])
            break
        zoom *= 1.08
    fine = zoom >= FINE_FROM
    images, depths = (world.fine_image, world.fine_depth) if fine else (world.image, world.depth)
    index = int(random.integers(len(images)))
    source, truth = images[index].permute(1, 2, 0).numpy(), depths[index].float().numpy()
    if zoom == 1.0 and np.array_equal(turn, np.eye(3)):
        centre = np.array([cx, cy])  # a shift alone would need what was not photographed
        picture, depth = np.ascontiguousarray(source), truth
    else:
        pixels = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(np.float64)
        ray = rays(pixels)
        seen = ray[..., :2] / ray[..., 2:] * f + (cx, cy)
        if fine:
            seen = (seen + 0.5) * FINE - 0.5
        where = seen.astype(np.float32)
        picture = cv2.remap(np.ascontiguousarray(source), where, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        depth = cv2.remap(truth, where, None, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
        # Depth is along the optical axis, and that has turned.
        depth = (depth / ray[..., 2]).astype(np.float32)
    if not clean and random.random() < 0.5:
        picture, depth = picture[:, ::-1], depth[:, ::-1]
        centre = np.array([width - 1 - centre[0], centre[1]])
    return picture.copy(), depth.copy(), np.float32(f * zoom), centre.astype(np.float32)


def augment_appearance(pictures: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
    """Pictures in [-1, 1] whose colours, sharpness and texture say little of where they come from.

    Cameras' exposure and noise (`clips.sensor`), and of most pictures other hues, grey, out of focus, light and texture
    that vary over the picture; rectangles that hide what is behind them.

    Args:
        images: (N, 3, h, w) float in [0, 1].
        random: draws.
    """
    count, _, height, width = pictures.shape
    generator = torch.Generator(pictures.device).manual_seed(int(random.integers(2**62)))

    def per_picture(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).to(pictures).view(count, *(1,) * 3)

    def noise(channels: int, cell: int) -> torch.Tensor:
        shape = (count, channels, -(-height // cell) + 1, -(-width // cell) + 1)
        grain = torch.randn(shape, generator=generator, device=pictures.device, dtype=pictures.dtype)
        return functional.interpolate(grain, size=(height, width), mode="bilinear", align_corners=False)

    # Hues: a turn around grey, its angle small for half of the pictures.
    angles = np.where(random.random(count) < 0.5, random.normal(0, 0.2, count), random.uniform(-np.pi, np.pi, count))
    hue = Rotation.from_rotvec(angles[:, None] * np.ones(3) / math.sqrt(3)).as_matrix()
    grey = (random.random(count) < 0.15)[:, None, None]
    colours = torch.from_numpy(np.where(grey, np.full((3, 3), 1 / 3), hue)).to(pictures)
    out = torch.einsum("nij,njhw->nihw", colours, pictures)
    # Light, wide; texture, fine.
    light = noise(1, int(random.choice([16, 32]))) * per_picture(random.uniform(0, 0.35, count))
    texture = noise(3, int(random.choice([2, 4, 8]))) * per_picture(0.2 * random.random(count) ** 2)
    out = out * torch.exp(light + texture)
    # Contrast around the mean of the picture, both ways.
    mean = out.mean((1, 2, 3), keepdim=True)
    out = (mean + (out - mean) * per_picture(np.exp(random.normal(0, 0.25, count)))).clamp(0, 1)
    blurred = torch.from_numpy(random.random(count) < 0.25).to(out.device)
    if bool(blurred.any()):
        soft = functional.avg_pool2d(out[blurred], 3, 1, 1, count_include_pad=False)
        out[blurred] = functional.avg_pool2d(soft, 3, 1, 1, count_include_pad=False) if random.random() < 0.4 else soft
    plain = torch.from_numpy(random.random(count) < PLAIN).to(out.device)
    out = augment_colours(torch.where(plain[:, None, None, None], pictures, out), random)
    for index in np.flatnonzero(random.random(count) < 0.25):
        h, w = (int(random.uniform(0.08, 0.35) * n) for n in (height, width))
        y, x = int(random.integers(height - h + 1)), int(random.integers(width - w + 1))
        colour = torch.from_numpy(random.uniform(-1, 1, (3, 1, 1))).to(out)
        out[index, :, y : y + h, x : x + w] = colour
    return out


def depth_loss(said: DepthMaps, batch: DepthBatch) -> tuple[torch.Tensor, dict[str, float]]:
    """What training lowers.

    The absolute error of the logarithm, that of each picture up to its scale (Eigen et al., 2014), differences of edges
    at several sizes (Ranftl et al., MiDaS, 2020), whether anything was hit, and the negative logarithm of the
    likelihood under the Laplace distributions that the network gives. The last trains their scale alone: through it,
    the few pixels of which the network is sure and wrong would outweigh all others.
    """
    hit = batch.depth > 0
    weight = hit.float()
    total = weight.sum().clamp_min(1)
    error = (said.log_depth - batch.log_depth()) * weight
    absolute = error.abs().sum() / total
    likelihood = ((error.detach().abs() * torch.exp(-said.log_scale) + said.log_scale) * weight).sum() / total
    of_each = weight.sum((1, 2)).clamp_min(1)
    mean = error.sum((1, 2)) / of_each
    relative = ((error - mean[:, None, None]).abs() * weight).sum() / total
    edges = _edges(error, weight)
    there = functional.binary_cross_entropy_with_logits(said.hit, weight)
    loss = absolute + LIKELIHOOD * likelihood + GRADIENT * edges + RELATIVE * relative + HIT * there
    parts = {"absolute": absolute, "likelihood": likelihood, "edges": edges, "relative": relative, "hit": there}
    return loss, {name: float(value.detach()) for name, value in parts.items()}


def _edges(error: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Mean difference of the errors of neighbours, over `LEVELS` sizes."""
    sums = []
    for level in range(LEVELS):
        step = 2**level
        e, w = error[:, ::step, ::step], weight[:, ::step, ::step]
        right, below = w[:, :, 1:] * w[:, :, :-1], w[:, 1:] * w[:, :-1]
        sums.append(((e[:, :, 1:] - e[:, :, :-1]).abs() * right).sum() / right.sum().clamp_min(1))
        sums.append(((e[:, 1:] - e[:, :-1]).abs() * below).sum() / below.sum().clamp_min(1))
    return torch.stack(sums).mean()


class DepthStage:
    """Trains the depth network on single views; see `loop.Stage`."""

    name = "depth"

    def __init__(self, run: Run, training: WorldDataset, validation: WorldDataset) -> None:
        self.run, self.settings = run, run.settings.stages[self.name]
        seeds = run.seeds(self.name)
        self._random = np.random.default_rng([*seeds, 1])
        typical: dict[str, Any] = {}
        if not run.has(self.name):
            random = np.random.default_rng([*seeds, 2])
            typical = typical_of([DepthSampler(32)(training, random, torch.device("cpu")) for _ in range(8)])
        self.model = run.depth_network(typical)
        self.parameter_groups = [
            ParameterGroup("depth", parameters_of(self.model), self._loss, self.settings.learning_rate)
        ]
        random = np.random.default_rng(0)
        self._validation = [DepthSampler(16, clean=True)(validation, random, run.device) for _ in range(8)]
        self._feed = run.stream(DepthSampler(self.settings.batch), training, [*seeds, 3])

    def start_step(self) -> None:
        """Draws the views of a step."""
        batch = self._feed.take()
        assert batch is not None
        self._batch = batch
        self._pictures = augment_appearance(batch.images.float() / 255, self._random)

    def _loss(self) -> tuple[torch.Tensor, dict[str, float]]:
        pictures = self._pictures.contiguous(memory_format=torch.channels_last)
        return depth_loss(self.model(pictures, self._batch.centre), self._batch)

    def validate(self) -> tuple[dict[str, float], np.ndarray]:
        """Errors in metres, without and after scale alignment; pictures, truth and prediction below each other."""
        figures: dict[str, list[float]] = {}
        rows: list[np.ndarray] = []
        for batch in self._validation:
            with self.run.accelerator.autocast():
                said = self.model(batch.images.float() / 127.5 - 1, batch.centre)
            loss, _ = depth_loss(said, batch)
            hit = batch.depth > 0
            error = said.log_depth - batch.log_depth()
            ratio = torch.where(hit, error, torch.nan)
            level = ratio.flatten(1).nanmedian(1).values[:, None, None]
            values = {
                "loss": float(loss),
                "absrel": float((ratio.exp() - 1).abs().nanmean()),
                "delta": float((error.abs()[hit] < math.log(1.25)).float().mean()),
                "aligned_absrel": float(((ratio - level).exp() - 1).abs().nanmean()),
                "hit": float(((said.hit > 0) == hit).float().mean()),
            }
            for name, value in values.items():
                figures.setdefault(name, []).append(value)
            if len(rows) < 6 and (not rows or rows[0].shape[1:] == (*batch.depth.shape[1:], 3)):
                shown = said.log_depth + (batch.focal / CANONICAL_FOCAL).log()[:, None, None]
                guess = torch.where(said.hit > 0, shown.exp(), 0)
                pictures = as_uint8(batch.images[:8].float() / 127.5 - 1)
                rows += [pictures, coloured(batch.depth[:8]), coloured(guess[:8])]
        return {name: float(np.mean(values)) for name, values in figures.items()}, sheet(rows)

    def save(self) -> None:
        """Writes the weights."""
        self.run.save_depth_network(self.model)

    def close(self) -> None:
        """Ends the processes that draw views."""
        self._feed.close()


def typical_of(batches: list[DepthBatch]) -> dict[str, float]:
    """What one would say without looking: `typical_log` and `typical_depth` of a `DepthNetwork`."""
    logs = torch.cat([batch.log_depth()[batch.depth > 0] for batch in batches])
    metres = torch.cat([batch.depth[batch.depth > 0] for batch in batches])
    return {"typical_log": round(float(logs.median()), 4), "typical_depth": round(float(metres.median()), 3)}


def coloured(depth: torch.Tensor) -> np.ndarray:
    """(N, h, w) metres as pictures (N, h, w, 3) uint8 RGB."""
    return np.stack([depth_image(one, FAR) for one in depth.detach().float().cpu().numpy()])
