"""Stages 2 to 4: the backbone alone, the control branch on it, the memory branch on both."""

from __future__ import annotations

from collections import deque

import numpy as np
import torch

from worldstereo_ros.training.data.clip_sampling import ClipBatch
from worldstereo_ros.training.data.dataset import WorldDataset, as_uint8, psnr, sheet
from worldstereo_ros.training.data.loaders import LEAST_REPLAY, ClipSampler
from worldstereo_ros.training.flow_matching import (
    LatentClips,
    encode_clips,
    flow_loss,
    noised,
    sample,
    shifted,
    velocity,
)
from worldstereo_ros.training.run_folder import Run
from worldstereo_ros.training.trainer import ParameterGroup, parameters_of

VALIDATION_CLIPS, VALIDATION_BATCH = 12, 3
VALIDATION_LEVELS = (0.3, 0.6, 0.9)
SAMPLED_STEPS = 6  # of the pictures that validation looks at


class DiffusionStage:
    """Trains a part of the transformer by rectified flow; see `loop.Stage`.

    What is trained: `video` everything but the branches, `control` the control branch, `memory` the camera tokens and
    the joint attention and feed-forwards of the backbone's blocks.
    """

    def __init__(self, name: str, run: Run, training: WorldDataset, validation: WorldDataset) -> None:
        self.name, self.run, self.settings = name, run, run.settings.stages[name]
        self.control, self.memory = name != "video", name in ("memory", "distill", "finetune")
        self.autoencoder = run.autoencoder()
        self.model = run.transformer(name)
        seeds = run.seeds(name)
        self._random = np.random.default_rng([*seeds, 1])
        self._generator = run.generator([*seeds, 2])
        self._steps = 0
        self._watched: list[tuple[ClipBatch, LatentClips]] = []
        self._validation = validation
        self.parameter_groups = self._make_parameter_groups()
        if name not in (
            "distill",
            "finetune",
        ):  # networks with gradients and without: compiling takes most of their time
            run.compile(self.model)
        self._replay: deque[LatentClips] = deque(maxlen=max(1, run.settings.worlds.replay))
        draw = ClipSampler(
            self.settings.batch,
            self.settings.frames,
            self.control,
            self.memory,
            short_clip_prob=self.settings.short_clip_prob,
        )
        self._feed = run.stream(draw, training, [*seeds, 3])

    def _make_parameter_groups(self) -> list[ParameterGroup]:
        return [ParameterGroup(self.name, parameters_of(self.model), self._loss, self.settings.learning_rate)]

    def start_step(self) -> None:
        """Draws the clips of a step, or takes those of the step before once more."""
        if self._steps % self.settings.noise_reuse == 0:
            replay = self.run.settings.worlds.replay
            batch = self._feed.take(wait=not replay or len(self._replay) < min(replay, LEAST_REPLAY))
            if batch is None:
                self._clips = self._replay[int(self._random.integers(len(self._replay)))]
            else:
                self._clips = self._encode(batch)
                self._replay.append(self._clips)
        self._steps += 1

    def _encode(self, batch: ClipBatch) -> LatentClips:
        text_dim = self.run.settings.transformer["text_dim"]
        with self.run.accelerator.autocast():
            return encode_clips(
                batch,
                self.autoencoder,
                text_dim,
                control=self.control,
                memory=self.memory,
                layout=self.control and bool(self.run.settings.control.get("layout_channels")),
            )

    def _loss(self) -> tuple[torch.Tensor, dict[str, float]]:
        return flow_loss(self.model, self._clips, self.run.settings.shift, self._generator), {}

    # --- validation ---

    def levels(self) -> torch.Tensor:
        """Noise levels that validation samples with."""
        even = torch.linspace(1, 1 / SAMPLED_STEPS, SAMPLED_STEPS)
        return shifted(even, self.run.settings.shift)

    def validate(self) -> tuple[dict[str, float], np.ndarray]:
        """Flow loss at fixed levels, PSNR of sampled views, whole and in holes.

        The picture has truth, renders and what was painted below each other.
        """
        if not self._watched:
            random = np.random.default_rng(0)
            draw = ClipSampler(VALIDATION_BATCH, self.settings.frames, self.control, self.memory, clean=True)
            for _ in range(VALIDATION_CLIPS // VALIDATION_BATCH):
                batch = draw(self._validation, random, self.run.device)
                self._watched.append((batch, self._encode(batch)))
        generator = torch.Generator(device=self.run.device).manual_seed(0)
        losses, whole, holes = [], [], []
        rows: list[np.ndarray] = []
        for batch, clips in self._watched:
            noise = torch.randn(clips.latents.shape, generator=generator, device=clips.latents.device)
            with self.run.accelerator.autocast():
                for level in VALIDATION_LEVELS:
                    at = torch.full((len(noise),), level, device=noise.device)
                    said = velocity(self.model, noised(clips.latents, noise, at), at, clips)
                    losses.append(float((said - (noise - clips.latents)).square().mean()))
                made = sample(self.model, clips, self.levels().to(noise.device), noise)
                painted = self.autoencoder.decode(made[:, :, 1:]).float()
            truth = batch.images[:, :, 1:]
            flat, wanted = (t.transpose(1, 2).flatten(0, 1) for t in (painted, truth))
            whole.append(psnr(flat, wanted))
            if self.control:
                hole = batch.holes[:, :, 1:].transpose(1, 2).flatten(0, 1)
                error = ((flat - wanted).square().mean(1, keepdim=True) * hole).flatten(1).sum(1) / 4
                some = hole.flatten(1).sum(1) > 50
                holes.append(-10 * torch.log10((error / hole.flatten(1).sum(1).clamp_min(1))[some].clamp_min(1e-10)))
            if len(rows) < 6 and (not rows or rows[0].shape[1:3] == wanted.shape[-2:]):
                rows += [as_uint8(batch.images[0].transpose(0, 1))]
                if self.control:
                    rows += [as_uint8(batch.renders[0].transpose(0, 1))]
                rows += [as_uint8(torch.cat((batch.images[0][:, :1], painted[0]), dim=1).transpose(0, 1))]
        figures = {"loss": float(np.mean(losses)), "psnr": float(torch.cat(whole).mean())}
        if holes:
            figures["psnr_holes"] = float(torch.cat(holes).mean())
        return figures, sheet(rows)

    def save(self) -> None:
        """Writes the weights."""
        self.run.save_transformer(self.name, self.model)

    def close(self) -> None:
        """Ends the processes that draw clips."""
        self._feed.close()
