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

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from diffusers import UniPCMultistepScheduler

from worldstereo_ros.models import WorldStereoTransformer
from worldstereo_ros.models.checkpoint import CheckpointError, named, open_weights, tensors_of
from worldstereo_ros.models.picture_autoencoder import PictureAutoencoder
from worldstereo_ros.models.pretrained import BASE_STEM, finite
from worldstereo_ros.models.saving import save_base, save_variant, save_weights, write_json
from worldstereo_ros.training.settings import TrainingSettings

VARIANT_OF = {
    "control": "worldstereo-camera",
    "memory": "worldstereo-memory",
    "distill": "worldstereo-memory-dmd",
}
MEMORY_SWITCHES = ("main_camera_embedding", "camera_embedding_dim", "update_ref")


def is_trained(stage: str, name: str) -> bool:
    """Whether a stage trains the parameter of this name.

    `video` and `distill` everything but the branches, `control` the control branch, `memory` the camera tokens and the
    backbone's feed-forwards.
    """
    if stage == "control":
        return name.startswith("controlnet.")
    if stage == "memory":
        return name.startswith("camera_embedding.") or (name.startswith("blocks.") and ".ffn." in name)
    return stage != "teacher" and not name.startswith(("controlnet.", "camera_embedding."))


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
            model.requires_grad_(True)
            model.to(self.device, memory_format=torch.channels_last)  # convolutions run faster in it
        return model

    def save_autoencoder(self, model: PictureAutoencoder) -> None:
        """Writes the autoencoder."""
        config = {key: value for key, value in model.config.items() if not key.startswith("_")}
        save_weights(self.base / "vae", BASE_STEM, model.state_dict(), max_shard_bytes=self.shard_bytes)
        write_json(self.base / "vae" / "config.json", {"_class_name": "PictureAutoencoder", **config})

    # --- transformer ---

    @property
    def schedule(self) -> dict[str, Any]:
        """Arguments of `DMDScheduler`."""
        return {
            "start_timestep": 1000 / self.settings.dmd_steps,
            "num_train_timesteps": 1000,
            "shift": self.settings.shift,
            "steps": self.settings.dmd_steps,
        }

    def transformer(self, stage: str) -> WorldStereoTransformer:
        """The transformer as a stage starts or goes on with it; what the stage trains has gradients.

        Args:
            stage: of `settings.STAGES`, or "teacher" for what `distill` starts from.

        Raises:
            CheckpointError: what was saved is damaged, or an earlier stage is missing.
        """
        control = dict(self.settings.control)
        torch.manual_seed(self.settings.seed)
        if stage == "video":
            control = {}
        elif stage == "control":
            control = {k: v for k, v in control.items() if k not in MEMORY_SWITCHES}
        model = WorldStereoTransformer(**self.settings.transformer, controlnet_cfg=control or None)
        sources = [self.base / "transformer"] if stage != "video" or self.has("video") else []
        if stage in ("memory", "distill", "teacher") or (stage == "control" and self.has("control")):
            sources.append(self.folder / VARIANT_OF["control"])
        if stage in ("distill", "teacher") or (stage == "memory" and self.has("memory")):
            sources.append(self.folder / VARIANT_OF["memory"])
        if stage == "distill" and self.has("distill"):
            sources.append(self.folder / VARIANT_OF["distill"])
        loaded: set[str] = set()
        for folder in sources:
            weights = open_weights(folder, BASE_STEM if folder.name == "transformer" else "model")
            tensors = {
                name: finite(tensor, name, weights.tensors[name])
                for name, tensor in weights.read(list(weights.tensors))
            }
            loaded |= set(tensors)
            unexpected = model.load_state_dict(tensors, strict=False).unexpected_keys
            if unexpected:
                raise CheckpointError(f"{folder} has {tensors_of(unexpected)} too many: {named(unexpected)}.")
        if stage == "control" and not self.has("control"):
            model.start_control_from_backbone()
        new = [n for n, _ in model.named_parameters() if n not in loaded and not is_trained(stage, n)]
        if new:
            raise CheckpointError(f"{self.folder} lacks {tensors_of(new)}: {named(new)}; train the stage before first.")
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(is_trained(stage, name))
        return model.to(self.device)

    def save_transformer(self, stage: str, model: WorldStereoTransformer) -> None:
        """Writes what a stage trained, and all that `config.json` says of it."""
        if stage == "video":
            save_base(model, self.base, max_shard_bytes=self.shard_bytes)
            scheduler = UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=self.settings.shift
            )
            scheduler.save_pretrained(self.base / "scheduler")
            return
        kept = {
            "control": lambda name: name.startswith("controlnet."),
            "memory": lambda name: name.startswith("controlnet.") or is_trained("memory", name),
            "distill": lambda name: True,
        }[stage]
        variant = {
            "model_type": VARIANT_OF[stage],
            "base_model": "base",
            "nframe": self.settings.nframe,
            "scale_map": [list(size) for size in self.settings.sizes],
            "latent_cond_mode": "first_frame_only",
            "negative_prompt": "",
            "freeze_backbone": stage == "control",
            "text_encoder": "none",
            "guidance_scale": 1.0,
            "render_fill": "smooth",
        }
        if stage == "distill":
            schedule = self.schedule
            variant |= {
                "dmd_start_steps": schedule["start_timestep"],
                "dmd_end_steps": schedule["num_train_timesteps"],
                "gen_shift": schedule["shift"],
                "dmd_steps": schedule["steps"],
            }
        save_variant(model, self.folder / VARIANT_OF[stage], variant, keep=kept, max_shard_bytes=self.shard_bytes)

    def has(self, stage: str) -> bool:
        """Whether a stage has written weights."""
        folder = {"autoencoder": self.base / "vae", "video": self.base / "transformer"}.get(stage)
        return ((folder or self.folder / VARIANT_OF[stage]) / "config.json").is_file()
