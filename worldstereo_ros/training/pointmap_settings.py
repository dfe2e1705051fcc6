"""How the point-map network is trained: settings and presets."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from worldstereo_ros.training.config import TrainingConfigError


@dataclass(frozen=True)
class PointmapTraining:
    """How the network is trained.

    Attributes:
        minutes: duration, counted from the start of the process.
        shares: of the duration, for autoencoder, flow and finetune.
        device: cpu, cuda or auto (CUDA if available).
        sizes: (height, width) of the clips, multiples of 16 with about 12 000 pixels.
        frames: of a clip.
        batch: clips of a step.
        learning_rate: highest one.
        prior_drop: share of the clips without a prior.
        second_pass: share of the steps that train a second pass.
        ema: decay of the average of the weights.
        workers: processes that render walks; 0 = the training process does, every `walk_every` steps.
        capacity: walks of each size in the pool.
        first_walks: walks before training starts.
        views, supersample: of walks, see `moving_walks.render_walks`.
        validation_worlds: worlds to validate on, with two walks each at most.
        validation_s: seconds between validations; weights are written at each.
        reuse: consecutive steps that train on the same clips and priors; making them takes a third of a step.
        code_error: error of the autoencoder, one of `pointmap_losses.CODE_ERRORS`.
        walk_every: steps between looking for new walks.
        seed: random seed.
        network: arguments of `PointmapNetwork`.
        autoencoder: arguments of `PointmapAutoencoder`, without a prior; with one it has the size of the images'.
        bf16: compute in bfloat16 on a CPU, too, without a prior; much faster where it has instructions for it.
    """

    minutes: float = 60.0
    shares: tuple[float, float, float] = (0.10, 0.15, 0.75)
    device: str = "auto"
    sizes: tuple[tuple[int, int], ...] = ((96, 128), (80, 144))
    frames: int = 13
    batch: int = 4
    learning_rate: float = 8e-4
    prior_drop: float = 0.15
    second_pass: float = 0.5
    ema: float = 0.998
    workers: int = 0
    capacity: int = 60
    first_walks: int = 8
    views: int = 37
    supersample: int = 1
    validation_worlds: int = 4
    validation_s: float = 300.0
    reuse: int = 1
    walk_every: int = 1
    code_error: str = "huber"
    seed: int = 0
    network: dict[str, Any] | None = None
    autoencoder: dict[str, Any] | None = None
    bf16: bool = False


PRESETS = {
    "cpu": PointmapTraining(shares=(0.09, 0.09, 0.82), batch=2, ema=0.995, reuse=2, walk_every=3),
    "gpu": PointmapTraining(
        minutes=10.0, batch=40, workers=2, capacity=1600, first_walks=24, supersample=2, validation_worlds=12,
        validation_s=60.0,
    ),
    "smoke": PointmapTraining(
        minutes=2.0, sizes=((48, 64),), frames=5, batch=2, capacity=4, first_walks=2, views=9, validation_worlds=1,
        validation_s=40.0, network={"width": 48, "heads": 2, "depth": 1, "pixel_widths": (16, 24)},
    ),
}  # fmt: skip

# Without a prior. Network and autoencoder are 6 MB together; 17 frames, as in use.
_SMALL_AUTOENCODER = {"widths": (24, 40, 64), "encoder_blocks": (1, 1, 1), "decoder_blocks": (1, 1, 2)}
_SMALL_NETWORK = {"width": 192, "heads": 3, "depth": 3, "pixel_widths": (32, 56)}
PRESETS_WITHOUT_PRIOR = {
    "cpu": PointmapTraining(
        shares=(0.15, 0.85, 0.0), frames=17, batch=2, learning_rate=1e-3, ema=0.995, reuse=2, walk_every=4,
        capacity=400, first_walks=240, validation_worlds=8, validation_s=600.0, bf16=True, network=_SMALL_NETWORK,
        autoencoder=_SMALL_AUTOENCODER,
    ),
    "gpu": PointmapTraining(
        minutes=10.0, shares=(0.15, 0.85, 0.0), frames=17, batch=40, learning_rate=1e-3, workers=2, capacity=1600,
        first_walks=24, supersample=2, validation_worlds=12, validation_s=60.0, network=_SMALL_NETWORK,
        autoencoder=_SMALL_AUTOENCODER,
    ),
    "smoke": PointmapTraining(
        minutes=2.0, shares=(0.2, 0.8, 0.0), sizes=((48, 64),), frames=5, batch=2, capacity=4, first_walks=2, views=9,
        validation_worlds=1, validation_s=40.0,
        network={"width": 48, "heads": 2, "depth": 1, "pixel_widths": (16, 24)},
        autoencoder={"widths": (8, 16, 24), "encoder_blocks": (1, 1, 1), "decoder_blocks": (1, 1, 1)},
    ),
}  # fmt: skip


def preset(name: str, *, prior: bool = True) -> PointmapTraining:
    """The preset of a name; "" = gpu with CUDA and cpu without.

    Args:
        name: of the preset.
        prior: false: of the training without a prior.

    Raises:
        TrainingConfigError: there is no such preset.
    """
    if not name:
        name = "gpu" if torch.cuda.is_available() else "cpu"
    if name not in PRESETS:
        raise TrainingConfigError(f"There is no preset '{name}'; one of {', '.join(PRESETS)} was expected.")
    return (PRESETS if prior else PRESETS_WITHOUT_PRIOR)[name]


def process_age_s() -> float:
    """Seconds since this process started; 0 where the system does not tell."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return max(0.0, uptime - int(fields[19]) / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return 0.0
