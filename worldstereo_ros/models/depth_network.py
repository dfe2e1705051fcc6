"""The small depth network: metres of one picture, a few megabytes, fast on a CPU.

It sees a picture of about 12 000 pixels and says, for every pixel, the logarithm of its depth, how far that may be off
and whether anything is there at all. What a picture tells is depth per focal length: the same pixels through a lens
twice as long are twice as far away. So the network predicts depth for one focal length, `CANONICAL_FOCAL`, and the
camera's own brings it to metres (Yin et al., Metric3D, 2023). Its output in metres is exactly proportional to the focal
length, and holds for any field of view.

Convolutions at a quarter and an eighth of the size, attention over all of the picture at a sixteenth, convolutions on
the way back (Ranftl et al., Vision Transformers for Dense Prediction, 2021, far smaller).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn
from torch.nn import functional

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.models.autoencoders.image import Down, ResidualBlock, Up
from worldstereo_ros.models.checkpoints.loading import (
    BASE_STEM,
    check_memory,
    finite,
    memory_needed,
    place,
    same_tensors,
)
from worldstereo_ros.models.checkpoints.weights import CheckpointError, open_weights, read_json
from worldstereo_ros.utils.errors import InputError

CANONICAL_FOCAL = 100.0  # pixels
CELL = 16  # pixels of a token, along each side
PATCH = 4  # pixels of a feature at the largest size, along each side
NARROWEST, WIDEST = -4.0, 2.0  # of the logarithm of the uncertainty
SMOOTHING = 1.0  # pixels of the network's picture, of the depth it gives
FREQUENCIES = 4  # of a token's place, for each axis


@dataclass(frozen=True)
class DepthMaps:
    """What the network says of N pictures.

    Attributes:
        log_depth: (N, H, W) logarithm of metres for a camera of `CANONICAL_FOCAL` pixels.
        log_scale: (N, H, W) logarithm of the scale of a Laplace distribution around `log_depth`.
        hit: (N, H, W) logit of there being anything; the sky is nothing.
    """

    log_depth: torch.Tensor
    log_scale: torch.Tensor
    hit: torch.Tensor


@dataclass(frozen=True)
class MonocularDepth:
    """Depth of one picture.

    Attributes:
        depth: (H, W) float32 metres along the optical axis, 0 = nothing there.
        scale: (H, W) float32, expected |log(depth / truth)|; 0.1 = about 10 %.
    """

    depth: np.ndarray
    scale: np.ndarray


class DepthNetwork(ModelMixin, ConfigMixin):
    """One picture and its intrinsics to depth.

    Args:
        widths: channels at a quarter, an eighth and a sixteenth of the size.
        blocks: residual blocks at a quarter and an eighth, on the way in; one less on the way back, at least one.
        layers: attention blocks at a sixteenth.
        heads: of the attention.
        pixels: of the pictures that it was trained on; other sizes are brought to about so many.
        typical_log: what it says of every pixel before training.
        typical_depth: metres, the median over the training worlds: what one would say without looking.
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
    ) -> None:
        super().__init__()
        if len(widths) != 3 or len(blocks) != 2 or widths[2] % heads:
            raise InputError(
                f"widths {widths} must have three numbers, the last of them a multiple of heads ({heads}), and blocks "
                f"{blocks} two."
            )
        quarter, eighth, sixteenth = widths
        self.stem = nn.Conv2d(3 * PATCH**2 + 2, quarter, 3, padding=1)
        self.in_quarter = nn.Sequential(nn.GroupNorm(1, quarter), *(ResidualBlock(quarter) for _ in range(blocks[0])))
        self.down_eighth = Down(quarter, eighth)
        self.in_eighth = nn.Sequential(nn.GroupNorm(1, eighth), *(ResidualBlock(eighth) for _ in range(blocks[1])))
        self.down_sixteenth = nn.Conv2d(4 * eighth, sixteenth, 1)
        self.place = nn.Linear(4 * FREQUENCIES, sixteenth)
        self.attention = nn.ModuleList(AttentionBlock(sixteenth, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(sixteenth)
        self.up_eighth = nn.Conv2d(sixteenth, 4 * eighth, 1)
        self.out_eighth = nn.Sequential(
            nn.GroupNorm(1, eighth), *(ResidualBlock(eighth) for _ in range(max(1, blocks[1] - 1)))
        )
        self.up_quarter = Up(eighth, quarter)
        self.out_quarter = nn.Sequential(
            nn.GroupNorm(1, quarter), *(ResidualBlock(quarter) for _ in range(max(1, blocks[0] - 1)))
        )
        self.head = nn.Conv2d(quarter, 3 * PATCH**2, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)

    def forward(self, pictures: torch.Tensor, centre: torch.Tensor) -> DepthMaps:
        """Depth for a camera of `CANONICAL_FOCAL` pixels.

        Args:
            pictures: (N, 3, H, W) in [-1, 1]; H and W multiples of 16.
            centre: (N, 2) the principal point in pixels, x and y; pixel centres are whole numbers.

        Raises:
            ValueError: another shape.
        """
        channels, height, width = pictures.shape[1:]
        if channels != 3 or height % CELL or width % CELL:
            raise InputError(
                f"Pictures of shape {tuple(pictures.shape)} were given; (N, 3, H, W) with multiples of {CELL} was "
                "expected."
            )
        # Where a pixel is on the sensor: what is below the horizon, and how far, is half of what a picture tells.
        rays = _places(centre, height // PATCH, width // PATCH, PATCH)
        patches = functional.pixel_unshuffle(pictures, PATCH)
        quarter = self.in_quarter(self.stem(torch.cat([patches, rays.to(patches.dtype)], dim=1)))
        eighth = self.in_eighth(self.down_eighth(quarter))
        tokens = self.down_sixteenth(functional.pixel_unshuffle(eighth, 2))
        rows, columns = tokens.shape[-2:]
        where = _waves(_places(centre, rows, columns, CELL)).to(tokens.dtype)
        x = tokens.flatten(2).transpose(1, 2) + self.place(where)
        for layer in self.attention:
            x = layer(x)
        x = self.norm(x).transpose(1, 2).unflatten(2, (rows, columns))
        eighth = self.out_eighth(eighth + functional.pixel_shuffle(self.up_eighth(x), 2))
        quarter = self.out_quarter(quarter + self.up_quarter(eighth))
        maps = functional.pixel_shuffle(self.head(functional.silu(quarter)), PATCH).float()
        return DepthMaps(
            log_depth=maps[:, 0] + self.config.typical_log,
            log_scale=(maps[:, 1] - 1).clamp(NARROWEST, WIDEST),
            hit=maps[:, 2] + 2,
        )

    @torch.no_grad()
    def predict(self, image: np.ndarray, camera: Camera) -> MonocularDepth:
        """Depth of one picture of any size.

        Args:
            image: (H, W, 3) uint8 RGB, undistorted.
            camera: its intrinsics.

        Raises:
            ValueError: the image is not what was expected, or not of the camera's size.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise InputError(f"An image {image.shape} of {image.dtype} was given; (H, W, 3) uint8 was expected.")
        height, width = image.shape[:2]
        if (camera.height, camera.width) != (height, width):
            raise InputError(
                f"The image has {height}x{width} pixels and its camera {camera.height}x{camera.width}; they must agree."
            )
        rows, columns = self.size_for(height, width)
        shrinking = rows * columns < height * width
        small = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR)
        seen = camera.resized(columns, rows)
        device = self.head.weight.device
        picture = torch.from_numpy(small).to(device).permute(2, 0, 1)[None].to(self.dtype) / 127.5 - 1
        maps = self(picture, torch.tensor([[seen.cx, seen.cy]], device=device))
        focal = math.sqrt(seen.fx * seen.fy)
        log = maps.log_depth[0] + math.log(focal / CANONICAL_FOCAL)
        every = torch.stack([log, maps.log_scale[0], maps.hit[0]]).float().cpu().numpy()
        # The grid of the patches would be steps, and points on steps are taken for flying ones.
        every[0] = cv2.GaussianBlur(every[0], (0, 0), SMOOTHING)
        log_depth, log_scale, hit = (cv2.resize(one, (width, height), interpolation=cv2.INTER_LINEAR) for one in every)
        return MonocularDepth(np.where(hit > 0, np.exp(log_depth), 0).astype(np.float32), np.exp(log_scale))

    def size_for(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that pictures are brought to: multiples of 16, of about the pixels it was trained on."""
        factor = math.sqrt(self.config.pixels / (height * width))
        rows, columns = (max(CELL, round(n * factor / CELL) * CELL) for n in (height, width))
        return rows, columns


class AttentionBlock(nn.Module):
    """Attention over all tokens and a feed-forward, each around a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)
        for layer in (self.out, self.down):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, L, C) to the same."""
        parts = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        # Written out: for so few tokens the fused kernel's way back takes as long as all of the rest.
        match = (parts[0] @ parts[1].transpose(-1, -2)) * parts.shape[-1] ** -0.5
        mixed = match.softmax(-1).to(parts.dtype) @ parts[2]
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


def _places(centre: torch.Tensor, rows: int, columns: int, cell: int) -> torch.Tensor:
    """(N, 2, rows, columns): x and y of cells from the principal point, in canonical focal lengths."""
    y = (torch.arange(rows, device=centre.device) + 0.5) * cell - 0.5
    x = (torch.arange(columns, device=centre.device) + 0.5) * cell - 0.5
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"))
    return (grid[None] - centre.float()[:, :, None, None]) / CANONICAL_FOCAL


def _waves(places: torch.Tensor) -> torch.Tensor:
    """(N, rows * columns, 4 * FREQUENCIES) of (N, 2, rows, columns)."""
    rates = math.pi / 2 * 2.0 ** torch.arange(FREQUENCIES, device=places.device)
    angles = (places.flatten(2).transpose(1, 2)[..., None] * rates).flatten(2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def load_depth_network(
    folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> DepthNetwork:
    """The network of a folder with `config.json` and safetensors, in evaluation mode, without gradients.

    Raises:
        CheckpointError: there is none, it is damaged, or its weights do not fit its configuration.
    """
    config = read_json(folder / "config.json")
    if config.get("_class_name") != "DepthNetwork":
        raise CheckpointError(f"{folder} has a {config.get('_class_name')}; a DepthNetwork was expected.")
    arguments = {key: value for key, value in config.items() if not key.startswith("_")}
    try:
        with torch.device("meta"):
            model = DepthNetwork(**arguments).eval()
    except (ValueError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"{folder / 'config.json'} describes no depth network that fits: {error}.") from None
    weights = open_weights(folder, BASE_STEM)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    same_tensors(wanted, {name: info.shape for name, info in weights.tensors.items()}, folder)
    device = torch.device(device)
    check_memory(memory_needed(model, dtype), device, folder)
    for name, tensor in weights.read(list(weights.tensors), device):
        place(model, name, finite(tensor, name, weights.tensors[name]), dtype)
    return model.requires_grad_(False).eval()
