"""The folder of a training run: a checkpoint in the published layout, made stage by stage.

    <run>/base/vae/                 the autoencoder                              autoencoder
    <run>/base/transformer/         the backbone                                 video
    <run>/base/scheduler/           UniPC, as the backbone was trained
    <run>/worldstereo-camera/       the control branch; backbone from base       control
    <run>/worldstereo-memory/       camera tokens and feed-forwards too          memory
    <run>/worldstereo-memory-dmd/   everything, for a few steps                  distill
    <run>/logs/                     JSONL and pictures of every stage
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from worldstereo_ros.models.picture_autoencoder import PictureAutoencoder
from worldstereo_ros.models.pretrained import BASE_STEM
from worldstereo_ros.models.saving import save_weights, write_json
from worldstereo_ros.training.settings import TrainingSettings


@dataclass
class Run:
    """One run.

    Attributes:
        folder: where everything is written.
        settings: of the run.
        accelerator: devices and mixed precision.
    """

    folder: Path
    settings: TrainingSettings
    accelerator: Accelerator

    @property
    def device(self) -> torch.device:
        """Where it trains."""
        return self.accelerator.device

    @property
    def shard_bytes(self) -> int:
        """Largest file of weights."""
        return self.settings.max_shard_mb * 1_000_000

    @property
    def base(self) -> Path:
        """The base model's folder."""
        return self.folder / "base"

    def autoencoder(self, *, trained: bool = False) -> PictureAutoencoder:
        """The autoencoder: what was saved last, else a new one.

        Args:
            trained: it goes on being trained; else it is frozen.

        Raises:
            CheckpointError: what was saved is damaged, or there is nothing and it is needed.
        """
        from worldstereo_ros.models.pretrained import load_picture_autoencoder

        if (self.base / "vae" / "config.json").is_file():
            model = load_picture_autoencoder(self.base / "vae", self.device, torch.float32)
        else:
            torch.manual_seed(self.settings.seed)
            model = PictureAutoencoder(**self.settings.autoencoder).to(self.device)
        if trained:
            model.requires_grad_(True).watch_statistics()
            model.to(self.device, memory_format=torch.channels_last)  # convolutions run faster in it
        return model

    def save_autoencoder(self, model: PictureAutoencoder) -> None:
        """Writes a copy whose normalisation is folded in."""
        model = copy.deepcopy(model).cpu().eval()
        model.fold_statistics()
        config = {key: value for key, value in model.config.items() if not key.startswith("_")}
        save_weights(self.base / "vae", BASE_STEM, self._stored(model), max_shard_bytes=self.shard_bytes)
        write_json(self.base / "vae" / "config.json", {"_class_name": "PictureAutoencoder", **config})

    def _stored(self, model: torch.nn.Module) -> dict[str, Any]:
        return {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
