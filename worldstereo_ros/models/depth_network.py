"""The bundled depth network: metric depth of a single image; has a few megabytes, runs fast on a CPU.

It works on about 12 000 pixels and predicts for each pixel the logarithm of its depth, the uncertainty of that, and
whether the ray hits a surface at all. An image determines depth only relative to the focal length: the same pixels seen
with twice the focal length are twice as far away. The network therefore predicts depth for one focal length,
`CANONICAL_FOCAL_PX`, and the result is scaled by the camera's own (Yin et al., Metric3D, 2023). Predicted metres are
exactly proportional to the focal length, at any field of view.

The architecture is a small version of the dense prediction transformer (Ranftl et al., Vision Transformers for Dense
Prediction, 2021): convolutions at 1/4 and 1/8 of the resolution, a transformer at 1/16, convolutions on the way up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn
from torch.nn import functional

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.models.blocks import Downsample, ResidualBlock, Upsample, zero_module
from worldstereo_ros.models.checkpoints.bounds import MAX_NUMBER, check_integer, check_number, check_numbers
from worldstereo_ros.models.checkpoints.loading import BASE_STEM, build_on_meta
from worldstereo_ros.models.checkpoints.parameters import load_weights
from worldstereo_ros.models.checkpoints.weights import CheckpointError, open_weights, read_json
from worldstereo_ros.utils.errors import InputError

CANONICAL_FOCAL_PX = 100.0
TOKEN_PX = 16  # side of the cell of pixels that a token describes
PATCH_PX = 4  # side of the cell of pixels that a feature at the highest resolution describes
MIN_LOG_SCALE, MAX_LOG_SCALE = -4.0, 2.0  # range of the predicted log uncertainty
SMOOTHING_SIGMA_PX = 1.0  # of the predicted depth, in pixels of the network's input
NUM_FREQUENCIES = 4  # of the positional encoding, for each axis


@dataclass(frozen=True)
class DepthMaps:
    """Output of `DepthNetwork` for N images.

    Attributes:
        log_depth: (N, H, W) logarithm of the depth in metres for a camera of focal length `CANONICAL_FOCAL_PX`.
        log_scale: (N, H, W) logarithm of the scale of a Laplace distribution around `log_depth`.
        hit: (N, H, W) logit of the probability that the ray hits a surface (the sky is not a surface).
    """

    log_depth: torch.Tensor
    log_scale: torch.Tensor
    hit: torch.Tensor


@dataclass(frozen=True)
class MonocularDepth:
    """Depth of one image.

    Attributes:
        depth: (H, W) float32 metres along the optical axis, 0 = no surface.
        scale: (H, W) float32 expected absolute error of log(depth); 0.1 is about 10 %.
    """

    depth: np.ndarray
    scale: np.ndarray


class DepthNetwork(ModelMixin, ConfigMixin):
    """Predicts metric depth from one image and its intrinsics.

    Args:
        widths: channels at 1/4, 1/8 and 1/16 of the resolution.
        blocks: residual blocks at 1/4 and 1/8 on the way down; the way up has one less, at least one.
        layers: transformer blocks at 1/16.
        heads: attention heads.
        pixels: number of pixels of the training images; other sizes are resized to about that many.
        typical_log: initial output of `log_depth` for every pixel.
        typical_depth: median depth over the training worlds in metres, to fall back to in unfamiliar images.
        familiar: statistics of the training images (`depth.familiarity.Familiarity`); None = unknown.

    Raises:
        InputError: an argument has the wrong length, or the heads do not divide the last width.
    """

    @register_to_config
    def __init__(
        self,
        widths: tuple[int, ...] = (64, 112, 192),
        blocks: tuple[int, ...] = (2, 2),
        layers: int = 5,
        heads: int = 6,
        pixels: int = 12_288,
        typical_log: float = 1.0,
        typical_depth: float = 2.7,
        familiar: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if len(widths) != 3 or len(blocks) != 2 or widths[2] % heads:
            raise InputError(
                f"widths {widths} must have three numbers, the last a multiple of heads ({heads}), and blocks "
                f"{blocks} must have two."
            )
        quarter, eighth, sixteenth = widths
        self.stem = nn.Conv2d(3 * PATCH_PX**2 + 2, quarter, 3, padding=1)
        self.in_quarter = nn.Sequential(nn.GroupNorm(1, quarter), *(ResidualBlock(quarter) for _ in range(blocks[0])))
        self.down_eighth = Downsample(quarter, eighth)
        self.in_eighth = nn.Sequential(nn.GroupNorm(1, eighth), *(ResidualBlock(eighth) for _ in range(blocks[1])))
        self.down_sixteenth = nn.Conv2d(4 * eighth, sixteenth, 1)
        self.place = nn.Linear(4 * NUM_FREQUENCIES, sixteenth)
        self.attention = nn.ModuleList(TransformerBlock(sixteenth, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(sixteenth)
        self.up_eighth = nn.Conv2d(sixteenth, 4 * eighth, 1)
        self.out_eighth = nn.Sequential(
            nn.GroupNorm(1, eighth), *(ResidualBlock(eighth) for _ in range(max(1, blocks[1] - 1)))
        )
        self.up_quarter = Upsample(eighth, quarter)
        self.out_quarter = nn.Sequential(
            nn.GroupNorm(1, quarter), *(ResidualBlock(quarter) for _ in range(max(1, blocks[0] - 1)))
        )
        self.head = nn.Conv2d(quarter, 3 * PATCH_PX**2, 3, padding=1)
        zero_module(self.head)

    def forward(self, images: torch.Tensor, principal_point: torch.Tensor) -> DepthMaps:
        """Predicts depth for a camera of focal length `CANONICAL_FOCAL_PX`.

        Args:
            images: (N, 3, H, W) in [-1, 1]; H and W multiples of 16.
            principal_point: (N, 2) x and y in pixels; pixel centres are at integers.

        Returns:
            Maps of the size of the images.

        Raises:
            InputError: `images` has another shape.
        """
        quarter = self.features(images, principal_point)
        maps = functional.pixel_shuffle(self.head(functional.silu(quarter)), PATCH_PX).float()
        return DepthMaps(
            log_depth=maps[:, 0] + self.config.typical_log,
            log_scale=(maps[:, 1] - 1).clamp(MIN_LOG_SCALE, MAX_LOG_SCALE),
            hit=maps[:, 2] + 2,
        )

    def features(
        self, images: torch.Tensor, principal_point: torch.Tensor, extra: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Features (N, widths[0], H / 4, W / 4) that the head reads.

        Args:
            images, principal_point: see `forward`.
            extra: (N, widths[0], H / 4, W / 4) what is known of the frames beside their images, added after the first
                convolution.

        Raises:
            InputError: `images` has another shape.
        """
        channels, height, width = images.shape[1:]
        if channels != 3 or height % TOKEN_PX or width % TOKEN_PX:
            raise InputError(
                f"images has shape {tuple(images.shape)}; (N, 3, H, W) with H and W multiples of {TOKEN_PX} was "
                "expected."
            )
        # The position on the sensor is a strong cue: it tells how far below the horizon a pixel lies.
        coordinates = _pixel_coordinates(principal_point, height // PATCH_PX, width // PATCH_PX, PATCH_PX)
        patches = functional.pixel_unshuffle(images, PATCH_PX)
        first = self.stem(torch.cat([patches, coordinates.to(patches.dtype)], dim=1))
        quarter = self.in_quarter(first if extra is None else first + extra)
        eighth = self.in_eighth(self.down_eighth(quarter))
        tokens = self.down_sixteenth(functional.pixel_unshuffle(eighth, 2))
        rows, columns = tokens.shape[-2:]
        encoding = _positional_encoding(_pixel_coordinates(principal_point, rows, columns, TOKEN_PX)).to(tokens.dtype)
        x = tokens.flatten(2).transpose(1, 2) + self.place(encoding)
        for layer in self.attention:
            x = layer(x)
        x = self.norm(x).transpose(1, 2).unflatten(2, (rows, columns))
        eighth = self.out_eighth(eighth + functional.pixel_shuffle(self.up_eighth(x), 2))
        return self.out_quarter(quarter + self.up_quarter(eighth))

    @torch.no_grad()
    def predict(self, image: np.ndarray, camera: Camera) -> MonocularDepth:
        """Predicts depth of one image of any size.

        Args:
            image: (H, W, 3) uint8 RGB, undistorted.
            camera: intrinsics, of the size of the image.

        Raises:
            InputError: the image has another shape or dtype, or another size than the camera.
        """
        import cv2

        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise InputError(
                f"The image has shape {image.shape} and dtype {image.dtype}; (H, W, 3) uint8 was expected."
            )
        height, width = image.shape[:2]
        if (camera.height, camera.width) != (height, width):
            raise InputError(
                f"The image has {height}x{width} pixels and its camera {camera.height}x{camera.width}; they must agree."
            )
        rows, columns = self.input_size(height, width)
        shrinking = rows * columns < height * width
        resized = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR)
        resized_camera = camera.resized(columns, rows)
        device = self.head.weight.device
        images = torch.from_numpy(resized).to(device).permute(2, 0, 1)[None].to(self.dtype) / 127.5 - 1
        maps = self(images, torch.tensor([[resized_camera.cx, resized_camera.cy]], device=device))
        focal = math.sqrt(resized_camera.fx * resized_camera.fy)
        log_depth = maps.log_depth[0] + math.log(focal / CANONICAL_FOCAL_PX)
        stacked = torch.stack([log_depth, maps.log_scale[0], maps.hit[0]]).float().cpu().numpy()
        # Removes the steps between patches, whose points would be taken for flying pixels at depth edges.
        stacked[0] = cv2.GaussianBlur(stacked[0], (0, 0), SMOOTHING_SIGMA_PX)
        log_depth, log_scale, hit = (cv2.resize(m, (width, height), interpolation=cv2.INTER_LINEAR) for m in stacked)
        return MonocularDepth(np.where(hit > 0, np.exp(log_depth), 0).astype(np.float32), np.exp(log_scale))

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Returns the (height, width) that images are resized to: multiples of 16, with about `pixels` pixels."""
        factor = math.sqrt(self.config.pixels / (height * width))
        rows, columns = (max(TOKEN_PX, round(n * factor / TOKEN_PX) * TOKEN_PX) for n in (height, width))
        return rows, columns


class TransformerBlock(nn.Module):
    """Multi-head self-attention and a feed-forward network, each with a residual connection.

    Args:
        width: channels of the tokens.
        heads: attention heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)
        zero_module(self.out)
        zero_module(self.down)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (N, L, C) to the same shape."""
        qkv = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        # Not scaled_dot_product_attention: for this few tokens its backward pass takes as long as all of the rest.
        scores = (qkv[0] @ qkv[1].transpose(-1, -2)) * qkv.shape[-1] ** -0.5
        attended = scores.softmax(-1).to(qkv.dtype) @ qkv[2]
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


def _pixel_coordinates(principal_point: torch.Tensor, rows: int, columns: int, cell_px: int) -> torch.Tensor:
    """Returns (N, 2, rows, columns): x and y of cell centres from the principal point, in canonical focal lengths."""
    y = (torch.arange(rows, device=principal_point.device) + 0.5) * cell_px - 0.5
    x = (torch.arange(columns, device=principal_point.device) + 0.5) * cell_px - 0.5
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"))
    return (grid[None] - principal_point.float()[:, :, None, None]) / CANONICAL_FOCAL_PX


def _positional_encoding(coordinates: torch.Tensor) -> torch.Tensor:
    """Maps coordinates (N, 2, rows, columns) to sines and cosines (N, rows * columns, 4 * NUM_FREQUENCIES)."""
    frequencies = math.pi / 2 * 2.0 ** torch.arange(NUM_FREQUENCIES, device=coordinates.device)
    angles = (coordinates.flatten(2).transpose(1, 2)[..., None] * frequencies).flatten(2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def load_depth_network(
    folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> DepthNetwork:
    """Loads a network from a folder with `config.json` and safetensors, in evaluation mode, without gradients.

    Args:
        folder: folder of the network.
        device: device to load it to.
        dtype: dtype of the weights.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights do not fit the configuration.
    """
    file = folder / "config.json"
    config = read_json(file)
    if config.get("_class_name") != "DepthNetwork":
        raise CheckpointError(f"{folder} has a {config.get('_class_name')}; a DepthNetwork was expected.")
    check_numbers(file, config)
    for key, low, high in (("typical_depth", 1e-3, 1e4), ("typical_log", -10.0, 10.0)):
        if key in config:
            check_number(file, config, key, low, high)
    if "pixels" in config:
        check_integer(file, config, "pixels", TOKEN_PX**2, MAX_NUMBER)
    model = build_on_meta(DepthNetwork, file, config, "depth network")
    load_weights(model, open_weights(folder, BASE_STEM), torch.device(device), dtype)
    return model.requires_grad_(False).eval()
