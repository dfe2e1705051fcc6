"""Networks that make holes look like pictures: a generator that refines imagined pixels, and its patch discriminator.

The generator gets what is known of a view: the image of a regression model, planes drawn into the holes, the view
warped from memory, masks, geometry, and noise that is fixed to surfaces. It mixes the three images and adds a residual.
Both networks have no normalisation layers, as in R3GAN (Huang et al. 2024, arXiv 2501.05441); residual branches begin
at zero.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn
from torch.nn import functional

from worldstereo_ros.models.blocks import zero_module
from worldstereo_ros.models.checkpoints.networks import load_network
from worldstereo_ros.utils.errors import InputError

SOURCES = 3  # images that the generator mixes
PLAIN_CHANNELS = 7  # known, seen, probability, two of noise, depth, level
INPUT_CHANNELS = 3 * SOURCES + PLAIN_CHANNELS
MULTIPLE_PX = 16  # height and width of the generator's inputs


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; begins as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        zero_module(self.conv2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, width, h, w) to the same."""
        return x + self.conv2(functional.leaky_relu(self.conv1(functional.leaky_relu(x, 0.2)), 0.2))


class HoleRefiner(ModelMixin, ConfigMixin):
    """The generator, a U-Net at half the size of its inputs.

    Args:
        widths: channels at a half, a quarter, an eighth and a sixteenth of the size.
        blocks: residual blocks at each size, on the way down.
    """

    @register_to_config
    def __init__(self, widths: tuple[int, ...] = (24, 48, 80, 112), blocks: tuple[int, ...] = (1, 1, 2, 3)) -> None:
        super().__init__()
        if len(widths) != 4 or len(blocks) != 4:
            raise InputError(f"widths {widths} and blocks {blocks} must have four numbers each.")
        self.stem = nn.Conv2d(4 * INPUT_CHANNELS, widths[0], 3, padding=1)
        self.down, self.merge, self.up = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self.encoder = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(width) for _ in range(count)))
            for width, count in zip(widths, blocks, strict=True)
        )
        for fine, coarse in itertools.pairwise(widths):
            self.down.append(nn.Conv2d(fine, coarse, 4, stride=2, padding=1))
            self.up.append(nn.Conv2d(coarse, fine, 1))
            self.merge.append(nn.Sequential(nn.Conv2d(2 * fine, fine, 1), ResidualBlock(fine)))
        self.head = nn.Conv2d(widths[0], 4 * (SOURCES + 3), 3, padding=1)
        zero_module(self.head)
        nn.init.normal_(self.head.weight, std=1e-3)

    def forward(self, sources: torch.Tensor, plain: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mixing weights and residual.

        Args:
            sources: (b, 3 * SOURCES, H, W) images in [-1, 1]: of the regression model, planes, memory.
            plain: (b, PLAIN_CHANNELS, H, W): known, seen, probability of the plane, noise, logarithm of the depth,
                cosine between the plane's normal and up. H and W are multiples of `MULTIPLE_PX`.

        Returns:
            (b, SOURCES, H, W) weights with sum 1, and (b, 3, H, W) residual.

        Raises:
            InputError: an input has another shape.
        """
        height, width = plain.shape[-2:]
        shapes = (sources.shape[1:], plain.shape[1:])
        if shapes != ((3 * SOURCES, height, width), (PLAIN_CHANNELS, height, width)) or (
            height % MULTIPLE_PX or width % MULTIPLE_PX
        ):
            raise InputError(
                f"The refiner was given {tuple(sources.shape)} and {tuple(plain.shape)}; (b, {3 * SOURCES}, H, W) and "
                f"(b, {PLAIN_CHANNELS}, H, W) with multiples of {MULTIPLE_PX} were expected."
            )
        x = self.stem(functional.pixel_unshuffle(torch.cat((sources, plain), dim=1), 2))
        skips = []
        for level, block in enumerate(self.encoder):
            x = block(x)
            if level < len(self.down):
                skips.append(x)
                x = self.down[level](functional.leaky_relu(x, 0.2))
        for level in range(len(self.down) - 1, -1, -1):
            x = functional.interpolate(self.up[level](x), scale_factor=2, mode="bilinear", align_corners=False)
            x = self.merge[level](torch.cat((x, skips[level]), dim=1))
        out = functional.pixel_shuffle(self.head(functional.leaky_relu(x, 0.2)), 2)
        # Smooth, so that neighbouring pixels are of the same image and no grid shows.
        scores = functional.avg_pool2d(out[:, :SOURCES], 3, stride=1, padding=1, count_include_pad=False)
        return torch.softmax(4 * scores, dim=1), out[:, SOURCES:]


def refine(sources: torch.Tensor, weights: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """The refined image (b, 3, H, W) of a generator's outputs, see `HoleRefiner.forward`."""
    images = sources.unflatten(1, (SOURCES, 3))
    return (images * weights[:, :, None]).sum(dim=1) + residual


class PatchDiscriminator(nn.Module):
    """Judges patches of images at two sizes.

    Args:
        conditions: channels beside the image.
        widths: channels at a half, a quarter, an eighth and a sixteenth of the size.
    """

    def __init__(self, conditions: int, widths: Sequence[int] = (32, 64, 96, 128)) -> None:
        super().__init__()
        layers, inputs = [], 3 + conditions
        for width in widths:
            layers.append(nn.Sequential(nn.Conv2d(inputs, width, 4, stride=2, padding=1), ResidualBlock(width)))
            inputs = width
        self.layers = nn.ModuleList(layers)
        self.fine, self.coarse = nn.Conv2d(widths[1], 1, 3, padding=1), nn.Conv2d(widths[-1], 1, 3, padding=1)

    def forward(self, images: torch.Tensor, conditions: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Judges images (b, 3, H, W) in [-1, 1].

        Returns:
            Scores (b, 1, H / 4, W / 4) and (b, 1, H / 16, W / 16); and features at a half to a sixteenth of the size.
        """
        x = torch.cat((images, conditions), dim=1)
        features = []
        for layer in self.layers:
            x = functional.leaky_relu(layer(x), 0.2)
            features.append(x)
        return [self.fine(features[1]), self.coarse(x)], features


def load_hole_refiner(folder: Path, device: torch.device | str = "cpu") -> HoleRefiner | None:
    """Loads a refiner from a folder with `config.json` and safetensors, in evaluation mode, without gradients.

    Args:
        folder: folder of the network.
        device: device to load it to.

    Returns:
        The network in float32; None if there is no such folder.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights do not fit the configuration.
    """
    return load_network(folder, HoleRefiner, "refiner", device)
