"""Trains a LoRA for AnyRecon (arXiv 2604.19747) on a base in Wan's original layout, in three phases.

dense      rectified flow; all frames attend to all frames
sparse     the same with context-window attention, from the dense LoRA: its warm-up
distill    DMD2 to four steps, from the sparse LoRA or, without one, from the dense LoRA

Each phase writes `<phase>.safetensors`, with the names of the published file, so that it can be used as one. A phase
that has a file resumes from it. Student, teacher and fake score share one base, as three adapters of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.console import Console
from torch.nn import functional

from worldstereo_ros.models.checkpoints.lora import save_lora
from worldstereo_ros.models.checkpoints.parameters import default_dtype
from worldstereo_ros.models.checkpoints.wan_loading import (
    WanTransformerFiles,
    load_wan_autoencoder,
    load_wan_transformer,
    open_wan_transformer,
)
from worldstereo_ros.models.lora_layers import (
    adapter_factors,
    adapter_parameters,
    add_lora,
    set_adapter,
    set_factors,
)
from worldstereo_ros.models.schedulers import DMDScheduler
from worldstereo_ros.models.worldstereo.context_window import ContextWindow
from worldstereo_ros.pipelines.anyrecon.encoders import blank_text, load_clip
from worldstereo_ros.pipelines.anyrecon.files import find_files
from worldstereo_ros.pipelines.anyrecon.pipeline import MAX_CPU_PARAMETERS, SHIFT, SIZE, STEPS
from worldstereo_ros.pipelines.anyrecon.sequence import build_sequence, fit_frames
from worldstereo_ros.training.config import StageConfig, TrainingConfig, TrainingConfigError, WorldConfig
from worldstereo_ros.training.data.capture_clips import CaptureClip, sample_capture_clip
from worldstereo_ros.training.data.dataset import WorldDataset
from worldstereo_ros.training.data.world_workers import rendered_worlds
from worldstereo_ros.training.distribution_matching import generate_to_step, matching_loss
from worldstereo_ros.training.flow_matching import LatentClips, flow_loss, noised, sample, velocity
from worldstereo_ros.training.tensor_images import as_uint8, image_grid, psnr
from worldstereo_ros.training.trainer import ParameterGroup, train

PHASES = ("dense", "sparse", "distill")
STUDENT, TEACHER, FAKE = "default", "teacher", "fake"  # adapters
TARGETS = (".q", ".k", ".v", ".o", ".ffn.0", ".ffn.2")  # ends of the module names that the published LoRA changes
PAPER = StageConfig(steps=100_000, batch=1, frames=40, learning_rate=1e-4)
VALIDATION_CLIPS, VALIDATION_LEVELS = 2, (0.3, 0.6, 0.9)


@dataclass(frozen=True)
class AnyReconTraining:
    """How a LoRA is trained; the defaults are those of the paper, where it gives them.

    Attributes:
        stage: how one phase is trained: minutes, steps, batch (clips of a step), learning rate, and so on; `frames` are
            those of a clip, captures among them.
        size: (height, width) of the images in pixels, multiples of 16.
        rank: rank of the LoRA.
        window: context window of the phases sparse and distill.
        gradient_checkpointing: recompute activations, which saves memory.
        worlds: the procedural worlds that clips come from.
        device: cpu, cuda or auto (CUDA if available).
        seed: random seed.
    """

    stage: StageConfig = field(default_factory=lambda: PAPER)
    size: tuple[int, int] = SIZE
    rank: int = 32
    window: ContextWindow = field(default_factory=ContextWindow)
    gradient_checkpointing: bool = True
    worlds: WorldConfig = field(default_factory=WorldConfig)
    device: str = "auto"
    seed: int = 0


class Adapted:
    """A network with one of its adapters: a model for the loss functions."""

    def __init__(self, model: Any, adapter: str) -> None:
        self._model, self._adapter = model, adapter

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the network with this adapter, which stays active."""
        set_adapter(self._model, self._adapter)
        return self._model(*args, **kwargs)


class AnyReconStage:
    """One phase; see the module and `trainer.Stage`."""

    def __init__(
        self,
        phase: str,
        base: Path,
        folder: Path,
        settings: AnyReconTraining,
        device: torch.device,
        training: WorldDataset,
        validation: WorldDataset,
    ) -> None:
        """Loads the base, and the LoRA that the phase starts from.

        Raises:
            TrainingConfigError: there is no such phase, or it needs the LoRA of an earlier one.
            CheckpointError: a file of the base or a LoRA is missing or damaged.
        """
        if phase not in PHASES:
            raise TrainingConfigError(f"There is no phase '{phase}'; one of {', '.join(PHASES)} was expected.")
        self.name, self.phase, self.folder = f"anyrecon-{phase}", phase, folder
        self.settings, self.config, self.device = settings, settings.stage, device
        self._training, self._validation = training, validation
        source = starting_lora(phase, folder)
        files = find_files(base, lora="")
        self._files = open_wan_transformer(files.base, source)
        config = self._files.config
        self.text = blank_text(files.text, config["text_dim"]).to(device)
        self.image_encoder = load_clip(files.clip, config["image_dim"], device)
        self.autoencoder = load_wan_autoencoder(files.autoencoder, device=device, dtype=default_dtype(device))
        # The LoRA stays apart: it is trained further.
        plain = WanTransformerFiles(self._files.tensors, config, self._files.names)
        self.model = load_wan_transformer(plain, device=device)
        adapters = (STUDENT, TEACHER, FAKE) if phase == "distill" else (STUDENT,)
        torch.manual_seed(settings.seed)
        targets = [new for name, new in self._files.names.items() if name.removesuffix(".weight").endswith(TARGETS)]
        add_lora(self.model, [name for name in targets if name.endswith(".weight")], settings.rank, adapters)
        self._load_factors(adapters)
        if phase != "dense":
            self.model.set_context_window(settings.window)
        if settings.gradient_checkpointing:
            self.model.enable_gradient_checkpointing()
        seed = [settings.seed, PHASES.index(phase)]
        self.random = np.random.default_rng([*seed, 1])
        self.generator = torch.Generator(device).manual_seed(int(np.random.default_rng([*seed, 2]).integers(2**62)))
        self.clips: LatentClips
        self._validation_clips: list[tuple[CaptureClip, LatentClips]] = []
        self.parameter_groups = self._make_parameter_groups()

    @property
    def file(self) -> Path:
        """The LoRA that this phase writes."""
        return self.folder / f"{self.phase}.safetensors"

    def _load_factors(self, adapters: tuple[str, ...]) -> None:
        lora = self._files.lora
        if lora is None:
            return
        factors = {self._files.names[name]: lora.factors(name, self.device) for name in lora.pairs}
        for adapter in adapters:
            set_factors(self.model, adapter, factors)
        if self.phase == "distill":  # the teacher is never the student that was trained before
            teacher = next(f for p in ("sparse", "dense") if (f := self.folder / f"{p}.safetensors").is_file())
            opened = open_wan_transformer(self._files.tensors.path, teacher)
            assert opened.lora is not None
            factors = {opened.names[name]: opened.lora.factors(name, self.device) for name in opened.lora.pairs}
            set_factors(self.model, TEACHER, factors)

    def _make_parameter_groups(self) -> list[ParameterGroup]:
        rate = self.config.learning_rate
        if self.phase != "distill":
            return [ParameterGroup(self.name, adapter_parameters(self.model, STUDENT), self._flow_loss, rate)]
        critic_rate = self.config.critic_learning_rate or rate
        for factor in adapter_parameters(self.model, TEACHER):
            factor.requires_grad_(False)
        fake = adapter_parameters(self.model, FAKE)
        updates = self.config.critic_updates
        return [
            ParameterGroup(FAKE, fake, self._fake_loss, critic_rate, updates, averaged=False),
            ParameterGroup("student", adapter_parameters(self.model, STUDENT), self._student_loss, rate),
        ]

    # --- clips ---

    def start_step(self) -> None:
        """Samples and encodes the clips of the next step."""
        worlds = self._training.sample_worlds(self.config.batch, self.random)
        self.clips = self.encode([sample_capture_clip(world, self.config.frames, self.random) for world in worlds])

    @torch.no_grad()
    def encode(self, clips: list[CaptureClip]) -> LatentClips:
        """Encodes clips into the inputs of the transformer, with the same functions as inference."""
        latents, channels, images = [], [], []
        for clip in clips:
            inputs = build_sequence(clip.frames, clip.masks, self.settings.size, self.autoencoder, device=self.device)
            truth = fit_frames(clip.images, self.settings.size).to(self.device)
            latents.append(self.autoencoder.encode(truth, 4).float().transpose(0, 1))
            channels.append(inputs.channels[0])
            images.append(self.image_encoder(inputs.frames[0])[0])
        arguments = {
            "encoder_hidden_states": self.text.expand(len(clips), -1, -1),
            "encoder_hidden_states_image": torch.stack(images),
        }
        return LatentClips(torch.stack(latents), torch.stack(channels), arguments)

    # --- losses ---

    def levels(self) -> torch.Tensor:
        """Noise levels of the steps at inference."""
        return DMDScheduler(start_timestep=1000 / STEPS, steps=STEPS, shift=SHIFT).sigmas[:-1].to(self.device)

    def _flow_loss(self) -> tuple[torch.Tensor, dict[str, float]]:
        return flow_loss(self.model, self.clips, SHIFT, self.generator), {}

    def _generate(self, *, gradient: bool) -> torch.Tensor:
        levels, clips = self.levels(), self.clips
        last = int(self.random.integers(len(levels)))
        noise = torch.randn(clips.latents.shape, generator=self.generator, device=self.device)
        return generate_to_step(Adapted(self.model, STUDENT), clips, levels, last, noise, gradient=gradient)

    def _fake_loss(self) -> tuple[torch.Tensor, dict[str, float]]:
        generated = LatentClips(self._generate(gradient=False), self.clips.condition, self.clips.inputs)
        fake: Any = Adapted(self.model, FAKE)
        return flow_loss(fake, generated, SHIFT, self.generator), {}

    def _student_loss(self) -> tuple[torch.Tensor, dict[str, float]]:
        clips = self.clips
        generated = self._generate(gradient=True)
        matching = matching_loss(
            generated, clips, Adapted(self.model, TEACHER), Adapted(self.model, FAKE), SHIFT, self.generator
        )
        set_adapter(self.model, STUDENT)  # activations that are recomputed for the gradient are the student's
        regression = functional.mse_loss(generated, clips.latents)
        return matching + self.config.regression * regression, {
            "matching": float(matching.detach()),
            "regression": float(regression.detach()),
        }

    # --- validation ---

    @torch.no_grad()
    def validate(self) -> tuple[dict[str, float], np.ndarray]:
        """Flow loss at fixed noise levels, and PSNR of targets that four steps generate.

        The image has rows of true views, renders and generated views.
        """
        if not self._validation_clips:
            random = np.random.default_rng(0)
            for world in self._validation.sample_worlds(VALIDATION_CLIPS, random):
                clip = sample_capture_clip(world, self.config.frames, random)
                self._validation_clips.append((clip, self.encode([clip])))
        generator = torch.Generator(self.device).manual_seed(0)
        student: Any = Adapted(self.model, STUDENT)
        losses, quality = [], []
        rows: list[np.ndarray] = []
        for clip, clips in self._validation_clips:
            noise = torch.randn(clips.latents.shape, generator=generator, device=self.device)
            for level in VALIDATION_LEVELS:
                at = torch.full((1,), level, device=self.device)
                pred = velocity(student, noised(clips.latents, noise, at), at, clips)
                losses.append(float((pred - (noise - clips.latents)).square().mean()))
            latents = sample(student, clips, self.levels(), noise)
            targets = self.autoencoder.decode(latents[:, :, clip.captures :])[0].transpose(0, 1).float()
            truth = fit_frames(clip.images[clip.captures :], self.settings.size).to(self.device)
            quality.append(psnr(targets, truth))
            if not rows:
                given = fit_frames(clip.frames[clip.captures :], self.settings.size)
                rows = [as_uint8(images) for images in (truth, given, targets)]
        return {"loss": float(np.mean(losses)), "psnr": float(torch.cat(quality).mean())}, image_grid(rows)

    def save(self) -> None:
        """Writes the LoRA, with the names of the published file."""
        original = {new: name for name, new in self._files.names.items()}
        factors = adapter_factors(self.model, STUDENT)
        save_lora(self.file, {original[name]: pair for name, pair in factors.items()})

    def close(self) -> None:
        """Nothing runs beside the stage."""


def starting_lora(phase: str, folder: Path) -> Path | None:
    """The LoRA that a phase starts from: its own, else that of an earlier phase; None: a new one.

    Args:
        phase: one of `PHASES`.
        folder: folder of the run.

    Raises:
        TrainingConfigError: the phase needs the LoRA of an earlier one.
    """
    order = PHASES[: PHASES.index(phase) + 1]
    found = next((file for p in reversed(order) if (file := folder / f"{p}.safetensors").is_file()), None)
    if phase == "sparse" and found is None:
        raise TrainingConfigError(
            f"{folder} has no dense LoRA that sparse could start from; train the phase dense first."
        )
    if phase == "distill" and not any((folder / f"{p}.safetensors").is_file() for p in PHASES[:2]):
        raise TrainingConfigError(
            f"{folder} has no LoRA to distil; train the phase dense first, then sparse if you like."
        )
    return found


def train_anyrecon(
    base: Path,
    folder: Path,
    phase: str = "dense",
    settings: AnyReconTraining | None = None,
    *,
    worlds: Path | None = None,
    minutes: float | None = None,
    steps: int | None = None,
    console: Console | None = None,
) -> dict[str, float]:
    """Trains one phase of a LoRA for AnyRecon.

    Args:
        base: folder with Wan 2.1's own files, see `pipelines.anyrecon.files`.
        folder: folder of the run: `<phase>.safetensors`, logs and worlds.
        phase: `dense`, `sparse` or `distill`, see the module.
        settings: how it is trained; None: as in the paper.
        worlds: folder of rendered worlds; None: in `folder`.
        minutes, steps: override those of the settings.
        console: for the progress bar.

    Returns:
        Metrics of the last validation.

    Raises:
        TrainingConfigError: a setting is out of range, an earlier phase is missing, or the device is not available.
        CheckpointError: a file of the base is missing or damaged.
        TrainingError: values are NaN or infinite, or Ctrl-C was pressed.
    """
    settings = settings or AnyReconTraining()
    if phase not in PHASES:
        raise TrainingConfigError(f"There is no phase '{phase}'; one of {', '.join(PHASES)} was expected.")
    height, width = settings.size
    if height % 16 or width % 16 or settings.stage.frames < 3 or settings.rank < 1:
        raise TrainingConfigError(
            f"The size is {height}x{width}, with {settings.stage.frames} frames and rank {settings.rank}; multiples of "
            "16, at least 3 frames and at least rank 1 were expected."
        )
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise TrainingConfigError("The device is cuda and this machine has no usable CUDA GPU; use device auto or cpu.")
    accelerator = Accelerator(mixed_precision="no", cpu=settings.device == "cpu")
    # Files first: worlds take long to render.
    numbers = open_wan_transformer(find_files(base, lora="").base, starting_lora(phase, folder)).num_parameters
    if accelerator.device.type == "cpu" and numbers > MAX_CPU_PARAMETERS:
        raise TrainingConfigError(
            f"{base} has {numbers / 1e9:.0f} billion parameters, which cannot be trained on a CPU; use a "
            "machine with a CUDA GPU of 80 GB."
        )
    set_seed(settings.seed)
    folder.mkdir(parents=True, exist_ok=True)
    console = console or Console()
    world_config = TrainingConfig(
        sizes=(settings.size,), nframe=settings.stage.frames, autoencoder={}, transformer={}, control={},
        worlds=settings.worlds,
    )  # fmt: skip
    world_folder = worlds or folder / "worlds"
    with rendered_worlds(world_config, world_folder, console, accelerator.device) as (training, validation):
        stage = AnyReconStage(phase, base, folder, settings, accelerator.device, training, validation)
        return train(
            stage,
            accelerator,
            folder / "logs",
            minutes=minutes,
            steps=steps,
            header={"round": 0, "phase": phase, "rank": settings.rank, "frames": settings.stage.frames},
            refresh=training.refresh,
            console=console,
        )
