"""Stages 2 to 4: the video backbone, the control branch, the memory branch."""

from __future__ import annotations

from collections import deque

import numpy as np
import torch

from worldstereo_ros.evaluation.metrics import psnr_from_mse
from worldstereo_ros.training.data.clip_sampling import ClipBatch
from worldstereo_ros.training.data.dataset import WorldDataset
from worldstereo_ros.training.data.loaders import BatchStream, ClipSampler
from worldstereo_ros.training.flow_matching import (
    LatentClips,
    encode_clips,
    flow_loss,
    noised,
    sample,
    shifted,
    velocity,
)
from worldstereo_ros.training.precomputed_clips import PrecomputedClips, hash_weights, precompute_clips
from worldstereo_ros.training.run_folder import RunFolder
from worldstereo_ros.training.tensor_images import as_uint8, image_grid, psnr
from worldstereo_ros.training.trainer import ParameterGroup, parameters_of

VALIDATION_CLIPS, VALIDATION_BATCH = 12, 3
VALIDATION_LEVELS = (0.3, 0.6, 0.9)  # noise levels of the validation loss
VALIDATION_STEPS = 6  # denoising steps of validation images
MIN_HOLE_PX = 50  # frames with smaller holes do not count in the PSNR of holes
MIN_REPLAY = 8  # batches before any of them is used again
PRECOMPUTED_SEED = 4  # distinguishes the random numbers of precomputed clips


class DiffusionStage:
    """Trains a part of the transformer with rectified flow; see `trainer.Stage`.

    The stage `video` trains everything but the branches, `control` the control branch, `memory` the camera tokens and
    the joint attention and feed-forward layers of the backbone.

    Attributes:
        clips: the batch of the current step.
        new_clips: whether that batch has not been trained on before.
        replay: recent batches, for `worlds.replay`.
        stream: samples batches; None if clips are precomputed.
        random, generator: random numbers of the stage.
    """

    def __init__(self, name: str, run: RunFolder, training: WorldDataset, validation: WorldDataset) -> None:
        self.name, self.run, self.config = name, run, run.config.stages[name]
        self.control, self.memory = name != "video", name in ("memory", "distill", "finetune")
        self.autoencoder = run.autoencoder()
        self.model = run.transformer(name)
        seed = run.random_seed(name)
        self.random = np.random.default_rng([*seed, 1])
        self.generator = run.generator([*seed, 2])
        self.clips: LatentClips
        self.new_clips = True
        self._steps = 0
        self._validation_batches: list[tuple[ClipBatch, LatentClips]] = []
        self._validation = validation
        self.parameter_groups = self._make_parameter_groups()
        if name != "distill":  # it is too short to make up for the time of compiling
            run.compile(self.model)
        self.replay: deque[LatentClips] = deque(maxlen=max(1, run.config.worlds.replay))
        self._sampler = ClipSampler(
            self.config.batch,
            self.config.frames,
            self.control,
            self.memory,
            short_clip_prob=self.config.short_clip_prob,
            photographs_prob=self.config.photographs_prob,
        )
        self.stream: BatchStream[ClipBatch] | None = None
        self._precomputed: PrecomputedClips | None = None
        if self.config.precomputed_clips:
            self._precomputed = self._precompute(training, [*seed, 3])
        else:
            self.stream = run.stream(self._sampler, training, [*seed, 3])

    def _make_parameter_groups(self) -> list[ParameterGroup]:
        return [ParameterGroup(self.name, parameters_of(self.model), self._loss, self.config.learning_rate)]

    def start_step(self) -> None:
        """Takes the next batch of clips; with `noise_reuse`, every n-th step."""
        self.new_clips = self._steps % self.config.noise_reuse == 0
        if self.new_clips:
            self.clips = self._next_clips()
        self._steps += 1

    def _next_clips(self) -> LatentClips:
        if self._precomputed is not None:
            return self._precomputed.take()
        assert self.stream is not None
        replay = self.run.config.worlds.replay
        batch = self.stream.take(wait=not replay or len(self.replay) < min(replay, MIN_REPLAY))
        if batch is None:
            self.new_clips = False
            return self.replay[int(self.random.integers(len(self.replay)))]
        clips = self.encode(batch)
        self.replay.append(clips)
        return clips

    def _precompute(self, training: WorldDataset, seed: list[int]) -> PrecomputedClips:
        """Samples and encodes clips, as far as the run's folder does not have them."""

        def sample_batch(random: np.random.Generator) -> ClipBatch:
            training.refresh()
            return self._sampler(training, random, self.run.device)

        config = self.run.config
        source = {
            "seed": config.seed,
            "sizes": config.sizes,
            "text_dim": config.transformer["text_dim"],
            "layout_channels": config.control.get("layout_channels", 0),
            "precision": config.precision,
            **{name: getattr(self.config, name) for name in ("batch", "frames", "short_clip_prob")},
            "autoencoder": hash_weights(self.run.base / "vae"),
        }
        if self.config.photographs_prob:  # clips of earlier versions do not name it
            source["photographs_prob"] = self.config.photographs_prob
        files = precompute_clips(
            self.run.folder / "clips" / self.name,
            self.config.precomputed_clips,
            sample_batch,
            self.encode,
            # Without the number of the training period: all periods use the same clips.
            seed=[*self.run.random_seed(self.name)[:2], PRECOMPUTED_SEED],
            source={name: str(value) for name, value in source.items()},
        )
        return PrecomputedClips(files, seed, self.run.device)

    def encode(self, batch: ClipBatch) -> LatentClips:
        """Encodes a batch."""
        text_dim = self.run.config.transformer["text_dim"]
        with self.run.accelerator.autocast():
            return encode_clips(
                batch,
                self.autoencoder,
                text_dim,
                control=self.control,
                memory=self.memory,
                layout=self.control and bool(self.run.config.control.get("layout_channels")),
            )

    def _loss(self) -> tuple[torch.Tensor, dict[str, float]]:
        loss = flow_loss(self.model, self.clips, self.run.config.shift, self.generator)
        return loss, {"new_clips": float(self.new_clips)}

    # --- validation ---

    def levels(self) -> torch.Tensor:
        """Noise levels of the denoising steps in validation."""
        even = torch.linspace(1, 1 / VALIDATION_STEPS, VALIDATION_STEPS)
        return shifted(even, self.run.config.shift)

    def validate(self) -> tuple[dict[str, float], np.ndarray]:
        """Flow loss at fixed noise levels, and PSNR of sampled views over the whole image and over holes.

        The image has rows of ground truth, renders and sampled views.
        """
        if not self._validation_batches:
            random = np.random.default_rng(0)
            sampler = ClipSampler(VALIDATION_BATCH, self.config.frames, self.control, self.memory, clean=True)
            for _ in range(VALIDATION_CLIPS // VALIDATION_BATCH):
                batch = sampler(self._validation, random, self.run.device)
                self._validation_batches.append((batch, self.encode(batch)))
        generator = torch.Generator(device=self.run.device).manual_seed(0)
        losses, psnr_whole, psnr_holes = [], [], []
        rows: list[np.ndarray] = []
        for batch, clips in self._validation_batches:
            noise = torch.randn(clips.latents.shape, generator=generator, device=clips.latents.device)
            with self.run.accelerator.autocast():
                for level in VALIDATION_LEVELS:
                    at = torch.full((len(noise),), level, device=noise.device)
                    pred = velocity(self.model, noised(clips.latents, noise, at), at, clips)
                    losses.append(float((pred - (noise - clips.latents)).square().mean()))
                sampled = sample(self.model, clips, self.levels().to(noise.device), noise)
                decoded = self.autoencoder.decode(sampled[:, :, 1:]).float()
            images, target = (t.transpose(1, 2).flatten(0, 1) for t in (decoded, batch.images[:, :, 1:]))
            psnr_whole.append(psnr(images, target))
            if self.control:
                hole = batch.holes[:, :, 1:].transpose(1, 2).flatten(0, 1)
                area = hole.flatten(1).sum(1)
                error = ((images - target).square().mean(1, keepdim=True) * hole).flatten(1).sum(1)
                mse = (error / area.clamp_min(1))[area > MIN_HOLE_PX]
                psnr_holes += [psnr_from_mse(value, 2.0) for value in mse.tolist()]
            if len(rows) < 6 and (not rows or rows[0].shape[1:3] == target.shape[-2:]):
                rows += [as_uint8(batch.images[0].transpose(0, 1))]
                if self.control:
                    rows += [as_uint8(batch.renders[0].transpose(0, 1))]
                rows += [as_uint8(torch.cat((batch.images[0][:, :1], decoded[0]), dim=1).transpose(0, 1))]
        metrics = {"loss": float(np.mean(losses)), "psnr": float(torch.cat(psnr_whole).mean())}
        if self.control:
            metrics["psnr_holes"] = float(np.mean(psnr_holes)) if psnr_holes else float("nan")
        return metrics, image_grid(rows)

    def save(self) -> None:
        """Writes the weights."""
        self.run.save_transformer(self.name, self.model)

    def close(self) -> None:
        """Stops the loader processes."""
        if self.stream is not None:
            self.stream.close()
