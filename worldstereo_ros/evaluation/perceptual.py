"""ST-LPIPS: a perceptual distance, and the features of images behind it (Ghildyal and Liu 2022, arXiv 2207.13686).

The network is a VGG-16 (Simonyan and Zisserman 2015) whose pooling is low-pass filtered (Zhang 2019, arXiv
1904.11486), so that a shift by a pixel changes little, with one weight for each channel of five layers (Zhang et al.
2018, LPIPS). Its weights come with the Python package `stlpips_pytorch`, of which nothing else is used. It judges, and
is never trained on.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from worldstereo_ros.utils.errors import InputError

PACKAGE, WEIGHTS = "stlpips_pytorch", "weights/vST0.0/vgg_shift_tolerant.pth"
INSTALL = 'pip install "worldstereo_ros[evaluation]"'
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))  # channels of the convolutions
POOLING_PAD_PX = 2  # reflected on all sides before the low-pass filter
MIN_SIZE_PX = 32


class PerceptualNetwork(nn.Module):
    """The five feature maps of an image, and the distance of two images in them.

    The names of the parameters are those of the published weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scaling_layer = _Scaling()
        self.net = nn.Module()
        self._stages: list[list[nn.Module]] = []  # the same modules as in `net`, in order
        self._weights: list[nn.Module] = []
        number, channels = 0, 3
        for stage, widths in enumerate(STAGES, start=1):
            layers = nn.ModuleDict()
            if stage > 1:
                layers[str(number + 1)] = _LowPass(channels)  # after a max pooling without parameters
                number += 2
            for width in widths:
                layers[str(number)] = nn.Conv2d(channels, width, 3, padding=1)
                number, channels = number + 2, width
            self.net.add_module(f"slice{stage}", layers)
            self._stages.append(list(layers.values()))
        for stage, widths in enumerate(STAGES):
            weights = nn.Conv2d(widths[-1], 1, 1, bias=False)
            self.add_module(f"lin{stage}", nn.ModuleDict({"model": nn.ModuleDict({"1": weights})}))
            self._weights.append(weights)
        self.eval().requires_grad_(False)

    def features(self, images: torch.Tensor, stages: int = len(STAGES)) -> list[torch.Tensor]:
        """Feature maps after the last rectifier of each stage.

        Args:
            images: (B, 3, H, W) in [-1, 1], at least 32 pixels high and wide.
            stages: how many of the five.

        Returns:
            (B, C, h, w) of each stage, at about 1, 1/2, 1/4, 1/8 and 1/16 of the size.
        """
        x = self.scaling_layer(images)
        out = []
        for layers in self._stages[:stages]:
            for layer in layers:
                if isinstance(layer, _LowPass):
                    x = layer(functional.max_pool2d(x, 2, stride=1))
                else:
                    x = functional.relu(layer(x))
            out.append(x)
        return out

    def distance_map(
        self, first: Sequence[torch.Tensor], second: Sequence[torch.Tensor], size: tuple[int, int]
    ) -> torch.Tensor:
        """ST-LPIPS of each pixel; its mean over an image is about the published distance.

        Args:
            first, second: all `features` of two images.
            size: (height, width) of the map.

        Returns:
            (B, height, width), 0 where the images are alike.
        """
        total = torch.zeros(())
        for weights, a, b in zip(self._weights, first, second, strict=True):
            difference = (functional.normalize(a, eps=1e-10) - functional.normalize(b, eps=1e-10)) ** 2
            weighted = weights(difference)
            total = total + functional.interpolate(weighted, size, mode="bilinear", align_corners=False)
        return total[:, 0]


class _Scaling(nn.Module):
    """Brings images to the range that the network was trained on."""

    shift: torch.Tensor
    scale: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(1, 3, 1, 1))
        self.register_buffer("scale", torch.ones(1, 3, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images - self.shift) / self.scale


class _LowPass(nn.Module):
    """A 3x3 binomial filter, every second pixel."""

    filt: torch.Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("filt", torch.zeros(channels, 1, 3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        padded = functional.pad(x, [POOLING_PAD_PX] * 4, mode="reflect")
        return functional.conv2d(padded, self.filt, stride=2, groups=x.shape[1])


def is_available() -> bool:
    """Whether the weights are installed."""
    return _weights_file() is not None


@lru_cache(maxsize=1)
def load_perceptual_network() -> PerceptualNetwork:
    """The network with its published weights, on the CPU.

    Raises:
        InputError: the weights are not installed, or the file holds something else.
    """
    file = _weights_file()
    if file is None:
        raise InputError(f"The weights of ST-LPIPS are not installed; run: {INSTALL}")
    network = PerceptualNetwork()
    try:
        network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    except Exception as error:  # of many types, for files that hold something else
        raise InputError(f"{file} does not hold the weights of ST-LPIPS: {error}") from error
    return network


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """(1, 3, H, W) float32 in [-1, 1] of an image (H, W, 3) uint8."""
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1


def _weights_file() -> Path | None:
    # Found without an import: the package imports others that nothing here needs.
    found = importlib.util.find_spec(PACKAGE)
    for folder in (found.submodule_search_locations or []) if found else []:
        file = Path(folder) / WEIGHTS
        if file.is_file():
            return file
    return None
