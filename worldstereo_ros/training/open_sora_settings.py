"""How Open-Sora 1.2 is fine-tuned for point maps: settings, presets, and the folder of its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from worldstereo_ros.training.config import TrainingConfigError
from worldstereo_ros.training.pointmap_settings import PointmapTraining

BASE_PREFIX = "open-sora:"
TRANSFORMER_FOLDERS = ("transformer", "OpenSora-STDiT-v3")
AUTOENCODER_FOLDERS = ("vae", "OpenSora-VAE-v1.2")


@dataclass(frozen=True)
class OpenSoraTraining(PointmapTraining):
    """How STDiT3 and its autoencoder are fine-tuned; defaults are for the published size.

    Weights, gradients, averages and the optimiser's state take about 35 GB then (computed, not measured), activations
    come on top.

    Attributes:
        shares: of the duration, for autoencoder and flow; the third is 0: there is no stage of one step.
        recompute: activations are computed again for gradients, which takes less memory and more time.
        warm_up_steps: steps until the highest learning rate.
        autoencoder_rate: highest learning rate of the autoencoder.
    """

    minutes: float = 24 * 60.0
    device: str = "cuda"
    shares: tuple[float, float, float] = (0.3, 0.7, 0.0)
    sizes: tuple[tuple[int, int], ...] = ((384, 512),)
    frames: int = 17
    batch: int = 4
    learning_rate: float = 1e-4
    ema: float = 0.99
    workers: int = 2
    capacity: int = 120
    first_walks: int = 8
    supersample: int = 1
    validation_s: float = 1800.0
    recompute: bool = True
    warm_up_steps: int = 1000
    autoencoder_rate: float = 1e-5


OPEN_SORA_PRESETS = {
    "gpu": OpenSoraTraining(),
    "smoke": OpenSoraTraining(
        minutes=2.0, device="auto", sizes=((32, 48),), frames=5, batch=2, capacity=4, first_walks=2, views=9, workers=0,
        validation_worlds=1, validation_s=1e9, warm_up_steps=2,
    ),
}  # fmt: skip


def open_sora_preset(name: str) -> OpenSoraTraining:
    """The preset of a name; "" = gpu.

    Raises:
        TrainingConfigError: there is no such preset.
    """
    if (name or "gpu") not in OPEN_SORA_PRESETS:
        raise TrainingConfigError(
            f"There is no preset '{name}' for Open-Sora's size; one of {', '.join(OPEN_SORA_PRESETS)} was expected."
        )
    return OPEN_SORA_PRESETS[name or "gpu"]


def open_sora_folders(base: str) -> tuple[Path, Path]:
    """Folders of transformer and autoencoder that `--base open-sora:FOLDER` names.

    Raises:
        TrainingConfigError: the base is another one, or a folder is missing.
    """
    if not base.startswith(BASE_PREFIX) or base == BASE_PREFIX:
        raise TrainingConfigError(f"--base is '{base}'; {BASE_PREFIX}FOLDER was expected.")
    folder = Path(base.removeprefix(BASE_PREFIX)).expanduser()
    found = []
    for names in (TRANSFORMER_FOLDERS, AUTOENCODER_FOLDERS):
        there = [folder / name for name in names if (folder / name).is_dir()]
        if not there:
            raise TrainingConfigError(
                f"{folder} has no folder {' or '.join(names)}. Download hpcai-tech/OpenSora-STDiT-v3 and "
                "hpcai-tech/OpenSora-VAE-v1.2 into it."
            )
        found.append(there[0])
    return found[0], found[1]
