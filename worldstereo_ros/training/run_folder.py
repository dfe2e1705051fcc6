"""The folder of a training run: a checkpoint in the published layout, written stage by stage.

folder                          content                                      stage
<run>/base/vae/                 image autoencoder                            autoencoder
<run>/base/transformer/         backbone                                     video
<run>/base/scheduler/           UniPC scheduler of the backbone              video
<run>/base/depth/               monocular depth network                      depth
<run>/base/refiner/             refiner of imagined pixels                   refine
<run>/worldstereo-camera/       control branch                               control
<run>/worldstereo-memory/       camera tokens and blocks of the backbone     memory
<run>/worldstereo-memory-dmd/   whole model, few denoising steps             distill
<run>/finetuned/                the same, a checkpoint with its own base     finetune
<run>/clips/                    precomputed clips of each stage
<run>/views/                    views that the stage refine trains on
<run>/worlds/                   rendered worlds
<run>/logs/                     log (JSON lines) and validation image of each stage
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import UniPCMultistepScheduler

from worldstereo_ros.models import WorldStereoTransformer
from worldstereo_ros.models.autoencoders.image import ImageAutoencoder
from worldstereo_ros.models.checkpoints.loading import BASE_STEM, load_image_autoencoder
from worldstereo_ros.models.checkpoints.parameters import check_finite
from worldstereo_ros.models.checkpoints.saving import save_base, save_variant, save_weights, write_json
from worldstereo_ros.models.checkpoints.weights import CheckpointError, count_tensors, format_names, open_weights
from worldstereo_ros.models.depth_network import DepthNetwork, load_depth_network
from worldstereo_ros.models.hole_refiner import HoleRefiner, load_hole_refiner
from worldstereo_ros.training.config import STAGES, TrainingConfig
from worldstereo_ros.training.data.dataset import WorldDataset
from worldstereo_ros.training.data.loaders import BatchSampler, BatchStream, PrefetchingStream
from worldstereo_ros.training.logs import read_log

T = TypeVar("T")
VARIANT_OF = {
    "control": "worldstereo-camera",
    "memory": "worldstereo-memory",
    "distill": "worldstereo-memory-dmd",
    "finetune": "finetuned/worldstereo-memory-dmd",
}
MEMORY_SWITCHES = ("main_camera_embedding", "camera_embedding_dim", "update_ref")
MAX_COMPILED = 64  # combinations of sizes, references and gradients of a block's input


def is_trained(stage: str, name: str) -> bool:
    """Whether a stage trains the parameter of this name.

    `video` and `distill` train everything but the branches, `control` the control branch, `memory` the camera tokens
    and the backbone's joint attention and feed-forward layers, `finetune` everything. WorldStereo's memory stage trains
    the feed-forward layers alone; the attention of a small backbone has to be trained too to find references.
    """
    if stage == "control":
        return name.startswith("controlnet.")
    if stage == "memory":
        return name.startswith("camera_embedding.") or (
            name.startswith("blocks.") and (".ffn." in name or ".attn1." in name)
        )
    if stage == "finetune":
        return True
    return stage != "teacher" and not name.startswith(("controlnet.", "camera_embedding."))


@dataclass
class RunFolder:
    """Reads and writes the models of a run.

    Attributes:
        folder: its path.
        config: configuration of the run.
        accelerator: device and mixed precision.
    """

    folder: Path
    config: TrainingConfig
    accelerator: Accelerator

    @property
    def device(self) -> torch.device:
        """The training device."""
        return self.accelerator.device

    @property
    def shard_bytes(self) -> int:
        """Maximum size of a weights file."""
        return self.config.max_shard_mb * 1_000_000

    @property
    def base(self) -> Path:
        """The base model's folder."""
        return self.folder / "base"

    @property
    def finetuned(self) -> Path:
        """The checkpoint root that the stage finetune writes."""
        return self.folder / "finetuned"

    def autoencoder(self, *, trained: bool = False) -> ImageAutoencoder:
        """The saved autoencoder, or a new one.

        Args:
            trained: whether it is to be trained, with gradients; else it is frozen and must exist.

        Raises:
            CheckpointError: the saved one is missing, damaged or does not match the configuration.
        """
        if self.has("autoencoder"):
            model = load_image_autoencoder(self.base / "vae", self.device, torch.float32)
            for key, value in self.config.autoencoder.items():
                if _as_list(model.config[key]) != _as_list(value):
                    raise CheckpointError(
                        f"{self.base / 'vae'} has {key} {_as_list(model.config[key])} and the configuration "
                        f"{_as_list(value)}; use the configuration of this run, or train in another folder."
                    )
        elif not trained:
            raise CheckpointError(f"{self.base / 'vae'} has no autoencoder; train the stage autoencoder first.")
        else:
            torch.manual_seed(self.config.seed)
            model = ImageAutoencoder(**self.config.autoencoder).to(self.device)
        if trained:
            model.requires_grad_(True)
            model.to(self.device, memory_format=torch.channels_last)  # faster convolutions
        return model

    def save_autoencoder(self, model: ImageAutoencoder) -> None:
        """Writes the autoencoder."""
        config = {key: value for key, value in model.config.items() if not key.startswith("_")}
        save_weights(self.base / "vae", BASE_STEM, model.state_dict(), max_shard_bytes=self.shard_bytes)
        write_json(self.base / "vae" / "config.json", {"_class_name": "ImageAutoencoder", **config})

    def depth_network(self, typical: Mapping[str, Any]) -> DepthNetwork:
        """The saved depth network, or a new one, with gradients.

        Args:
            typical: `typical_log`, `typical_depth` and `familiar` of a new one.

        Raises:
            CheckpointError: the saved one is damaged or does not match the configuration.
        """
        folder = self.base / "depth"
        if self.has("depth"):
            model = load_depth_network(folder, self.device)
            for key, value in self.config.depth.items():
                if _as_list(model.config[key]) != _as_list(value):
                    raise CheckpointError(
                        f"{folder} has {key} {_as_list(model.config[key])} and the configuration {_as_list(value)}; "
                        "use the configuration of this run, or train in another folder."
                    )
        else:
            torch.manual_seed(self.config.seed)
            height, width = self.config.sizes[0]
            model = DepthNetwork(**{"pixels": height * width, **typical, **self.config.depth})
        return model.requires_grad_(True).to(self.device, memory_format=torch.channels_last)

    def save_depth_network(self, model: DepthNetwork) -> None:
        """Writes the depth network."""
        config = {key: value for key, value in model.config.items() if not key.startswith("_")}
        save_weights(self.base / "depth", BASE_STEM, model.state_dict(), max_shard_bytes=self.shard_bytes)
        write_json(self.base / "depth" / "config.json", {"_class_name": "DepthNetwork", **config})

    def refiner(self) -> HoleRefiner:
        """The saved refiner, or a new one, with gradients.

        Raises:
            CheckpointError: the saved one is damaged or does not match the configuration.
        """
        folder = self.base / "refiner"
        model = load_hole_refiner(folder, self.device)
        if model is None:
            torch.manual_seed(self.config.seed)
            model = HoleRefiner(**self.config.refiner)
        for key, value in self.config.refiner.items():
            if _as_list(model.config[key]) != _as_list(value):
                raise CheckpointError(
                    f"{folder} has {key} {_as_list(model.config[key])} and the configuration {_as_list(value)}; "
                    "use the configuration of this run, or train in another folder."
                )
        return model.requires_grad_(True).to(self.device, memory_format=torch.channels_last)

    def save_refiner(self, model: HoleRefiner) -> None:
        """Writes the refiner, for the run and for its fine-tuned checkpoint."""
        config = {key: value for key, value in model.config.items() if not key.startswith("_")}
        bases = [self.base, *([self.finetuned / "base"] if self.has("finetune") else [])]
        for base in bases:
            save_weights(base / "refiner", BASE_STEM, model.state_dict(), max_shard_bytes=self.shard_bytes)
            write_json(base / "refiner" / "config.json", {"_class_name": "HoleRefiner", **config})

    # --- transformer ---

    def schedule(self, stage: str) -> dict[str, Any]:
        """Arguments of `DMDScheduler` for the model of a stage."""
        steps = self.config.dmd_steps
        if stage == "finetune":
            steps = self.config.stages[stage].denoising_steps or steps
        return {
            "start_timestep": 1000 / steps,
            "num_train_timesteps": 1000,
            "shift": self.config.shift,
            "steps": steps,
        }

    def transformer(self, stage: str) -> WorldStereoTransformer:
        """The transformer at the start of a stage, from the weights of this and earlier stages.

        Parameters that the stage trains have gradients.

        Args:
            stage: one of `config.STAGES`, or "teacher" for the teacher of `distill`.

        Raises:
            CheckpointError: weights are damaged, or those of an earlier stage are missing.
        """
        control = dict(self.config.control)
        torch.manual_seed(self.config.seed)
        if stage == "video":
            control = {}
        elif stage == "control":
            control = {k: v for k, v in control.items() if k not in MEMORY_SWITCHES}
        model = WorldStereoTransformer(**self.config.transformer, controlnet_cfg=control or None)
        sources = [self.base / "transformer"] if stage != "video" or self.has("video") else []
        if stage in ("memory", "distill", "finetune", "teacher") or (stage == "control" and self.has("control")):
            sources.append(self.folder / VARIANT_OF["control"])
        if stage in ("distill", "finetune", "teacher") or (stage == "memory" and self.has("memory")):
            sources.append(self.folder / VARIANT_OF["memory"])
        if stage == "finetune" or (stage == "distill" and self.has("distill")):
            sources.append(self.folder / VARIANT_OF["distill"])
        if stage == "finetune" and self.has("finetune"):
            sources = [self.folder / VARIANT_OF["finetune"]]  # the whole model
        loaded: set[str] = set()
        for folder in sources:
            if not (folder / "config.json").is_file():
                before = next(
                    (name for name, variant in VARIANT_OF.items() if self.folder / variant == folder), "video"
                )
                raise CheckpointError(
                    f"{folder} has no weights; train the stage {before} first, on which {stage} builds."
                )
            weights = open_weights(folder, BASE_STEM if folder.name == "transformer" else "model")
            tensors = {
                name: check_finite(tensor, name, weights.tensors[name])
                for name, tensor in weights.read(list(weights.tensors))
            }
            loaded |= set(tensors)
            try:
                unexpected = model.load_state_dict(tensors, strict=False).unexpected_keys
            except RuntimeError:  # its message lists every tensor
                raise CheckpointError(
                    f"The weights in {folder} have other sizes than the configuration; use the "
                    "configuration of this run, or train in another folder."
                ) from None
            if unexpected:
                raise CheckpointError(f"{folder} has {count_tensors(unexpected)} too many: {format_names(unexpected)}.")
        if stage == "control" and not self.has("control"):
            model.init_control_from_backbone()
        # The stage finetune trains all parameters, and none from random values.
        new = [
            n
            for n, _ in model.named_parameters()
            if n not in loaded and (stage == "finetune" or not is_trained(stage, n))
        ]
        if new:
            raise CheckpointError(
                f"{self.folder} lacks {count_tensors(new)} that the stage {stage} starts from: {format_names(new)}; "
                "train the stages before it first."
            )
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(is_trained(stage, name))
        return model.to(self.device)

    def save_transformer(self, stage: str, model: WorldStereoTransformer) -> None:
        """Writes the weights that a stage trained, and their `config.json`."""
        if stage == "video":
            save_base(model, self.base, max_shard_bytes=self.shard_bytes)
            scheduler = UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=self.config.shift
            )
            scheduler.save_pretrained(self.base / "scheduler")
            return
        saved = {
            "control": lambda name: name.startswith("controlnet."),
            "memory": lambda name: name.startswith("controlnet.") or is_trained("memory", name),
            "distill": lambda name: True,
            "finetune": lambda name: True,
        }[stage]
        variant = {
            "model_type": Path(VARIANT_OF[stage]).name,
            "base_model": "base",
            "nframe": self.config.nframe,
            "scale_map": [list(size) for size in self.config.sizes],
            "latent_cond_mode": "first_frame_only",
            "negative_prompt": "",
            "freeze_backbone": stage == "control",
            "text_encoder": "none",
            "guidance_scale": 1.0,
            "render_fill": "smooth",
        }
        if stage in ("distill", "finetune"):
            schedule = self.schedule(stage)
            variant |= {
                "dmd_start_steps": schedule["start_timestep"],
                "dmd_end_steps": schedule["num_train_timesteps"],
                "gen_shift": schedule["shift"],
                "dmd_steps": schedule["steps"],
            }
        if stage == "finetune":
            shutil.copytree(self.base, self.finetuned / "base", dirs_exist_ok=True)
        save_variant(model, self.folder / VARIANT_OF[stage], variant, keep=saved, max_shard_bytes=self.shard_bytes)

    def has(self, stage: str) -> bool:
        """Whether there are weights of a stage."""
        parts = {"autoencoder": "vae", "video": "transformer", "refine": "refiner", "depth": "depth"}
        folder = self.base / parts[stage] if stage in parts else None
        folder = folder or self.folder / VARIANT_OF[stage]
        return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))

    # --- randomness, batches, speed ---

    def random_seed(self, stage: str) -> list[int]:
        """Random seed of a stage; different each time that the stage is trained, so that resuming repeats nothing."""
        return [self.config.seed, STAGES.index(stage), len(read_log(self.folder / "logs" / f"{stage}.jsonl"))]

    def generator(self, seed: list[int]) -> torch.Generator:
        """A random number generator on the training device."""
        state = np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]
        return torch.Generator(self.device).manual_seed(int(state) >> 1)

    def stream(self, sampler: BatchSampler[T], dataset: WorldDataset, seed: list[int]) -> BatchStream[T]:
        """A stream of training batches, with loader processes if the configuration has some."""
        loaders = self.config.worlds.loaders
        if loaders:
            return PrefetchingStream(sampler, dataset, seed, self.device, loaders)
        return BatchStream(sampler, dataset, seed, self.device)

    def compile(self, model: WorldStereoTransformer | ImageAutoencoder) -> None:
        """Compiles a network, if the configuration says so and the device is CUDA. Parameters keep their names."""
        if not self.config.compile or self.device.type != "cuda":
            return
        torch._dynamo.config.suppress_errors = True  # fall back to eager execution
        torch._dynamo.config.recompile_limit = MAX_COMPILED
        if isinstance(model, ImageAutoencoder):
            model.encoder.compile()
            model.decoder.compile()
        else:
            model.compile_repeated_blocks(dynamic=True)


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value
