"""Stages 2 to 4: the backbone alone, the control branch on it, the memory branch on both."""

from __future__ import annotations

import numpy as np
import torch

from worldstereo_ros.training.clips import Shelf, as_uint8, decibel, sheet
from worldstereo_ros.training.conditions import ClipBatch, draw_clips
from worldstereo_ros.training.flow import LatentClips, encode_clips, flow_loss, noised, sample, shifted, velocity
from worldstereo_ros.training.loop import Player, parameters_of
from worldstereo_ros.training.run import Run

VALIDATION_CLIPS, VALIDATION_BATCH = 12, 3
VALIDATION_LEVELS = (0.3, 0.6, 0.9)
SAMPLED_STEPS = 6  # of the pictures that validation looks at
REFERENCES = 4  # of a training clip, at most


class DiffusionStage:
    """Trains a part of the transformer by rectified flow; see `loop.Stage`.

    What is trained: `video` everything but the branches, `control` the control branch, `memory` the camera tokens and
    the backbone's feed-forwards.
    """

    def __init__(self, name: str, run: Run, training: Shelf, validation: Shelf) -> None:
        self.name, self.run, self.settings = name, run, run.settings.stages[name]
        self.control, self.memory = name != "video", name in ("memory", "distill")
        self.autoencoder = run.autoencoder()
        self.model = run.transformer(name)
        self._worlds = training
        self._random = np.random.default_rng(run.settings.seed + 2)
        self._generator = torch.Generator(device=run.device).manual_seed(run.settings.seed + 3)
        self._steps = 0
        self._watched: list[tuple[ClipBatch, LatentClips]] = []
        self._validation = validation
        self.players = self._make_players()

    def _make_players(self) -> list[Player]:
        return [Player(self.name, parameters_of(self.model), self._loss, self.settings.learning_rate)]

    def start_step(self) -> None:
        """Draws the clips of a step, or takes those of the step before once more."""
        if self._steps % self.settings.reuse == 0:
            self._clips = self._draw(self._worlds, self.settings.batch, self._random)[1]
        self._steps += 1

    def _draw(
        self, shelf: Shelf, count: int, random: np.random.Generator, *, clean: bool = False
    ) -> tuple[ClipBatch, LatentClips]:
        references = int(random.integers(1, REFERENCES + 1)) if self.memory and random.random() < 0.85 else 0
        batch = draw_clips(
            shelf,
            count,
            self.settings.frames,
            random,
            self.run.device,
            renders=self.control,
            references=references,
            clean=clean,
        )
        with self.run.accelerator.autocast():
            return batch, self._encode(batch)

    def _encode(self, batch: ClipBatch) -> LatentClips:
        text_dim = self.run.settings.transformer["text_dim"]
        return encode_clips(batch, self.autoencoder, text_dim, control=self.control, memory=self.memory)

    def _loss(self) -> tuple[torch.Tensor, dict[str, float]]:
        return flow_loss(self.model, self._clips, self.run.settings.shift, self._generator), {}

    # --- validation ---

    def levels(self) -> torch.Tensor:
        """Noise levels that validation samples with."""
        even = torch.linspace(1, 1 / SAMPLED_STEPS, SAMPLED_STEPS)
        return shifted(even, self.run.settings.shift)

    def validate(self) -> tuple[dict[str, float], np.ndarray]:
        """Flow loss at fixed levels, PSNR of sampled views whole and in holes; truth, shown, painted below each other."""
        if not self._watched:
            random = np.random.default_rng(0)
            self._watched = [
                self._draw(self._validation, VALIDATION_BATCH, random, clean=True)
                for _ in range(VALIDATION_CLIPS // VALIDATION_BATCH)
            ]
        generator = torch.Generator(device=self.run.device).manual_seed(0)
        losses, whole, holes, rows = [], [], [], []
        for batch, clips in self._watched:
            noise = torch.randn(clips.latents.shape, generator=generator, device=clips.latents.device)
            with self.run.accelerator.autocast():
                for level in VALIDATION_LEVELS:
                    at = torch.full((len(noise),), level, device=noise.device)
                    said = velocity(self.model, noised(clips.latents, noise, at), at, clips)
                    losses.append(float((said - (noise - clips.latents)).square().mean()))
                made = sample(self.model, clips, self.levels().to(noise.device), noise)
                painted = self.autoencoder.decode(made[:, :, 1:]).float()
            truth = batch.pictures[:, :, 1:]
            flat, wanted = (t.transpose(1, 2).flatten(0, 1) for t in (painted, truth))
            whole.append(decibel(flat, wanted))
            if self.control:
                hole = batch.holes[:, :, 1:].transpose(1, 2).flatten(0, 1)
                error = ((flat - wanted).square().mean(1, keepdim=True) * hole).flatten(1).sum(1) / 4
                some = hole.flatten(1).sum(1) > 50
                holes.append(-10 * torch.log10((error / hole.flatten(1).sum(1).clamp_min(1))[some].clamp_min(1e-10)))
            if len(rows) < 6 and (not rows or rows[0].shape[1:3] == wanted.shape[-2:]):
                rows += [as_uint8(batch.pictures[0].transpose(0, 1))]
                if self.control:
                    rows += [as_uint8(batch.renders[0].transpose(0, 1))]
                rows += [as_uint8(torch.cat((batch.pictures[0][:, :1], painted[0]), dim=1).transpose(0, 1))]
        figures = {"loss": float(np.mean(losses)), "psnr": float(torch.cat(whole).mean())}
        if holes:
            figures["psnr_holes"] = float(torch.cat(holes).mean())
        return figures, sheet(rows)

    def save(self) -> None:
        """Writes the weights."""
        self.run.save_transformer(self.name, self.model)

