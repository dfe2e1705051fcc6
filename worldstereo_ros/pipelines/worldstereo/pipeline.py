"""The WorldStereo pipeline: memory conditions a diffusion model, which paints what memory lacks.

What it does to one clip:

1. Seed, renders, cameras and references become keyframes (`conditioning.py`) and latents.
2. From noise, the transformer takes the latents step by step to pictures: 40 steps with guidance, or the distilled
   model's four.
3. Keyframes are decoded one by one, each given away at once.
4. Where a sensor saw what a view shows, the remembered pictures themselves are shown, at full resolution, faded into
   the model's picture outside: only there a pixel may be called observed. Depth is that of the cloud, filled smoothly.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from worldstereo_ros.depth.alignment import DepthError, complete_depth
from worldstereo_ros.depth.estimators import DepthEstimator, small_depth
from worldstereo_ros.imaging.inpainting import fill_depth
from worldstereo_ros.models import (
    CheckpointConfig,
    WorldStereoTransformer,
    find_checkpoint,
    load_autoencoder,
    load_transformer,
    make_scheduler,
)
from worldstereo_ros.models.checkpoints.loading import default_dtype
from worldstereo_ros.models.checkpoints.weights import CheckpointError
from worldstereo_ros.pipelines.base import Conditioning, ModelError, OnStep, PipelineFrame
from worldstereo_ros.pipelines.diffusion.distributed import lead_transformer, process_count
from worldstereo_ros.pipelines.diffusion.text_encoders import (
    ImageEncoder,
    NoText,
    TextEncoder,
    load_image_encoder,
    load_text_encoder,
)
from worldstereo_ros.pipelines.geometric.pipeline import GeometricPipeline
from worldstereo_ros.pipelines.geometric.plane_extrapolation import Layout, LayoutEstimator
from worldstereo_ros.pipelines.geometric.warped_view import WarpedView
from worldstereo_ros.pipelines.worldstereo.compositing import compose, mix_with_memory, resize_image
from worldstereo_ros.pipelines.worldstereo.conditioning import Keyframes, make_keyframes
from worldstereo_ros.pipelines.worldstereo.video_condition import VideoCondition, load_video_condition
from worldstereo_ros.utils.errors import InputError

STEPS = 40  # of the variants that are not distilled
MASK_CHANNELS = 4
ENCODED_AT_ONCE = 8  # pictures; all keyframes of a clip side by side would take as much memory as the steps

PLANE_LIKELY, PLANE_WITHIN = 0.6, 2.0  # a plane's depth is taken, unless the network sees another by this factor
COARSE = 4  # pixels from one to the next where the two are compared

# (pipeline, step, timestep, {"latents": ...}) to a dict with what is to be replaced, as in diffusers.
StepEnd = Callable[["WorldStereoPipeline", int, torch.Tensor, dict[str, torch.Tensor]], dict[str, torch.Tensor] | None]


class WorldStereoPipeline:
    """Imagines views with a WorldStereo checkpoint; see the module.

    One device needs no process group; several share the work of the transformer under `torchrun` (`processes.py`).

    Attributes:
        name: what it is called; None: the variant.
        clip_length: views of one call: the keyframes of the model without the first, which is the seed.
        steps: denoising steps; None: those of the variant.
        guidance: scale of classifier-free guidance, 1 = none; at first that of the checkpoint.
        compose_observed: show and claim what was observed; else every pixel is the model's, and imagined.
        fill_clip: always give the model all keyframes it was trained with, the last pose repeated. A shorter path
            costs as much as a full one then.
        callback_on_step_end: called after every step as in diffusers' pipelines; may replace `latents`.
        depth: gives depth to what was painted (`depth.complete_depth`); None: what is remembered is filled smoothly.
    """

    selects_references = True

    def __init__(
        self,
        settings: CheckpointConfig,
        transformer: WorldStereoTransformer,
        autoencoder: Any,
        scheduler: Any,
        text_encoder: TextEncoder | NoText,
        image_encoder: ImageEncoder | None,
        *,
        video_condition: VideoCondition | None = None,
        device: str | torch.device = "cpu",
        name: str | None = None,
        steps: int | None = None,
        compose_observed: bool = True,
        fill_clip: bool = False,
        callback_on_step_end: StepEnd | None = None,
        depth: DepthEstimator | None = None,
    ) -> None:
        """Puts the parts together; `from_pretrained` finds and loads them.

        Args:
            settings: of the checkpoint.
            transformer, autoencoder, scheduler, text_encoder: the parts, on `device`.
            image_encoder: None for a backbone without image embedding.
            video_condition: makes the condition latents of `full_vae`; None: mid-grey, each frame alone.
            device: where they are.
            name, steps, compose_observed, fill_clip, callback_on_step_end, depth: see the class.

        Raises:
            ValueError: fewer steps than one.
        """
        if steps is not None and steps < 1:
            raise InputError(f"{steps} denoising steps were asked for; at least one is needed.")
        self.settings = settings
        self.transformer, self.autoencoder, self.scheduler = transformer, autoencoder, scheduler
        self.text_encoder, self.image_encoder = text_encoder, image_encoder
        self.video_condition = video_condition
        self.device = torch.device(device)
        self.name = name or settings.variant
        self.clip_length = settings.nframe - 1
        self.distilled = settings.distilled
        self.steps = steps
        self.guidance = settings.guidance
        self.compose_observed = compose_observed
        self.fill_clip = fill_clip
        self.callback_on_step_end = callback_on_step_end
        self.depth = depth
        self._memory, self._find_layout = GeometricPipeline(), LayoutEstimator()

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        variant: str | None = None,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        reference_attention: str = "full",
        offload: bool = True,
        local_files_only: bool = False,
        parallel: bool = True,
        **options: Any,
    ) -> WorldStereoPipeline:
        """Loads a checkpoint and what it takes from its base.

        Args:
            model: `small`, a folder or a hub id, see `models.find_checkpoint`.
            variant: one of `models.VARIANTS`, with or without `worldstereo-`; None: see there.
            device: where it runs.
            dtype: of the networks; None: bfloat16 on CUDA, float32 on the CPU.
            reference_attention: full, paired or correspondence.
            offload: the text encoder waits in main memory and comes to the device for a new prompt only.
            local_files_only: never ask the hub.
            parallel: under `torchrun`, share the transformer's work with the other processes (`processes.py`).
            options: of the class.

        Raises:
            CheckpointError: a ValueError whose sentence says what is missing, damaged or too large.
        """
        device = torch.device(device)
        dtype = dtype or default_dtype(device)
        checkpoint = find_checkpoint(model, variant, local_files_only=local_files_only)
        settings = checkpoint.settings
        if parallel and process_count() > 1:
            transformer: Any = lead_transformer(checkpoint, device, dtype, reference_attention)
        else:
            transformer = load_transformer(
                checkpoint, device=device, dtype=dtype, reference_attention=reference_attention
            )
        if transformer.config.image_dim and not settings.reads_text:
            raise CheckpointError(
                f"{checkpoint.folder} says text_encoder none and its base has an image embedding, which comes with 512 "
                "tokens of text; take the key out of config.json, or use a base without image embedding."
            )
        return cls(
            settings,
            transformer,
            load_autoencoder(checkpoint, device=device, dtype=dtype),
            make_scheduler(
                settings.raw,
                None if settings.distilled else checkpoint.base("scheduler"),
            ),
            load_text_encoder(checkpoint, device, dtype, offload=offload)
            if settings.reads_text
            else NoText(transformer.config.text_dim, device),
            load_image_encoder(checkpoint, device, dtype) if transformer.config.image_dim else None,
            video_condition=load_video_condition(checkpoint, device, dtype),
            device=device,
            **{"depth": small_depth(checkpoint.base("vae") / "depth", device), **options},
        )

    def __call__(
        self, conditioning: Conditioning, *, prompt: str, generator: torch.Generator, on_step: OnStep
    ) -> Iterator[PipelineFrame]:
        """Yields the frames of the clip in order, each as soon as it is decoded.

        Raises:
            ModelError: the device's memory does not suffice, or the model gave numbers that are not finite.
        """
        failure = ""
        try:
            yield from self._imagine(conditioning, prompt, generator, on_step)
        except torch.OutOfMemoryError as error:
            failure = str(error)
        except RuntimeError as error:
            if "allocate memory" not in str(error) or isinstance(error, ModelError):
                raise
            failure = str(error)
        finally:  # also when cancelled between two steps
            self._free()
        if failure:  # raised here, where nothing holds on to the tensors any more
            raise ModelError(self._too_large(conditioning, failure))

    # --- one clip ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _encode(
        self, conditioning: Conditioning, prompt: str, warped_views: list[WarpedView], layout: Layout | None
    ) -> tuple[dict[str, Any], torch.Tensor, list[torch.Tensor]]:
        """What stays the same in all steps: arguments of the transformer, condition (1, 20, F, h, w), prompts."""
        camera = conditioning.camera
        size = self.settings.image_size_for(camera.height, camera.width)
        remembers = self.settings.remembers
        keyframes = make_keyframes(
            conditioning,
            size,
            self.device,
            remembers=remembers,
            count=self.settings.nframe if self.fill_clip else None,
            correspondence=(size[0] // 16, size[1] // 16)
            if self.transformer.config.reference_attention == "correspondence"
            else None,
            painted=warped_views if self.settings.fills_renders else None,
            layout=layout,
        )
        latents = self.autoencoder.encode(keyframes.images, ENCODED_AT_ONCE).transpose(0, 1)[None]
        known = torch.zeros_like(latents[:, :MASK_CHANNELS])
        known[:, :, 0] = 1
        condition = torch.cat((known, self._condition(keyframes, latents)), dim=1)
        inputs: dict[str, Any] = {
            "render_latent": latents,
            "render_mask": keyframes.holes,
            "camera_embedding": keyframes.plucker,
        }
        if keyframes.guessed is not None and keyframes.plane_channels is not None:
            guessed = self.autoencoder.encode(keyframes.guessed, ENCODED_AT_ONCE).transpose(0, 1)[None]
            inputs["render_latent"] = guessed
            inputs["layout"] = torch.cat((latents - guessed, keyframes.plane_channels.to(latents)), dim=1)
        if self.transformer.has_memory:
            inputs["camera_qt"] = keyframes.poses
        if remembers and len(keyframes.references):
            references = self.autoencoder.encode(keyframes.references).transpose(0, 1)[None]
            ones = torch.ones_like(references[:, :MASK_CHANNELS])
            inputs["reference_latent"] = torch.cat((references, ones, references), dim=1)
            inputs["ref_index"] = keyframes.reference_index
            inputs["camera_qt_ref"] = keyframes.reference_poses
            inputs["reference_points"] = keyframes.reference_points
        if self.image_encoder is not None:
            seed = conditioning.start_view.resized(size[1], size[0])
            inputs["encoder_hidden_states_image"] = self.image_encoder(seed.image)
        prompts = [self.text_encoder(prompt)]
        if self.guidance > 1:
            prompts.append(self.text_encoder(self.settings.negative_prompt))
        return inputs, condition, prompts

    def _condition(self, keyframes: Keyframes, latents: torch.Tensor) -> torch.Tensor:
        """(1, 16, F, h, w): the seed's latent, then those of mid-grey: a video's, or each frame's alone."""
        if self.video_condition is not None:
            return self.video_condition(keyframes.images[0], latents.shape[2]).to(latents)
        grey = self.autoencoder.encode(torch.zeros_like(keyframes.images[:1])).transpose(0, 1)[None]
        return torch.cat((latents[:, :, :1], grey.expand(-1, -1, latents.shape[2] - 1, -1, -1)), dim=2)

    @torch.no_grad()
    def _denoise(
        self,
        conditioning: Conditioning,
        prompt: str,
        generator: torch.Generator,
        on_step: OnStep,
        warped_views: list[WarpedView],
        layout: Layout | None,
    ) -> torch.Tensor:
        """(16, F, h, w) latents of the keyframes, the seed's among them."""
        steps = self.steps or (None if self.distilled else STEPS)
        self.scheduler.set_timesteps(steps, device=self.device)
        timesteps = self.scheduler.timesteps
        on_step("encoding", 0, len(timesteps))
        inputs, condition, prompts = self._encode(conditioning, prompt, warped_views, layout)
        shape = (1, condition.shape[1] - MASK_CHANNELS, *condition.shape[2:])
        latents = torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float32).to(self.device)
        for step, timestep in enumerate(timesteps):
            on_step("denoising", step, len(timesteps))
            hidden = torch.cat((latents, condition.to(latents.dtype)), dim=1)
            velocities = [
                self.transformer(hidden, timestep.expand(1), words, return_dict=False, **inputs)[0].float()
                for words in prompts
            ]
            velocity = velocities[0]
            if len(velocities) > 1:
                velocity = velocities[1] + self.guidance * (velocity - velocities[1])
            latents = self.scheduler.step(velocity, timestep, latents, return_dict=False)[0]
            if not torch.isfinite(latents).all():
                raise ModelError(
                    f"{self.name} gave numbers that are not finite in step {step + 1} of {len(timesteps)}; "
                    f"it runs in {str(self.transformer.dtype).removeprefix('torch.')}, use bfloat16 or float32, and if "
                    "that changes nothing its weights are damaged."
                )
            if self.callback_on_step_end is not None:
                changed = self.callback_on_step_end(self, step, timestep, {"latents": latents}) or {}
                latents = changed.get("latents", latents)
        return latents[0]

    def _imagine(
        self, conditioning: Conditioning, prompt: str, generator: torch.Generator, on_step: OnStep
    ) -> Iterator[PipelineFrame]:
        # A model that is shown what memory makes of the views needs their pictures first. What in them was observed is
        # asked view by view, as they are given away.
        warped_views = self._memory.warp_all(conditioning, on_step) if self.settings.fills_renders else []
        layout = self._find_layout(conditioning.references) if self.settings.shows_layout else None
        latents = self._denoise(conditioning, prompt, generator, on_step, warped_views, layout)
        count = len(conditioning.world_from_camera)
        with torch.no_grad():
            pictures = self.autoencoder.decode_frames(latents[:, 1 : count + 1])
        for index in range(count):
            on_step("decoding", index, count)
            with torch.no_grad():
                picture = next(pictures)
            if not torch.isfinite(picture).all():
                raise ModelError(f"The autoencoder gave numbers that are not finite in view {index + 1} of {count}.")
            image = (picture.float().clamp(-1, 1).add(1).mul(127.5).round()).to(torch.uint8)
            image = image.permute(1, 2, 0).cpu().numpy()
            frame = self._remembered(conditioning, index, warped_views[index] if warped_views else None)
            image = resize_image(image, conditioning.camera.width, conditioning.camera.height)
            if warped_views and self.compose_observed:
                image = mix_with_memory(image, warped_views[index], conditioning, index)
            composed = compose(frame, image)
            painted = self.compose_observed or self.settings.fills_renders
            composed = self._with_depth(composed, conditioning, index, layout)
            yield composed if painted else replace(composed, memory_image=None)

    def _with_depth(
        self, frame: PipelineFrame, conditioning: Conditioning, index: int, layout: Layout | None
    ) -> PipelineFrame:
        """The frame with depth where memory has none, and how unlikely planes go on there.

        Where planes go on, most likely, and the depth network does not see something else there, theirs is taken.
        """
        covered = conditioning.renders.covered[index].cpu().numpy()
        depth = frame.depth
        if depth is None or covered.all():
            return frame
        pose, threads = conditioning.world_from_camera[index], self._memory.threads
        planes = None
        if layout is not None:
            planes = layout.seen_from(conditioning.camera, pose, wanted=~covered, threads=threads)
            frame = replace(frame, plane_absence=np.where(covered, np.float32(0), 1 - planes[2]).clip(0, 1))
        if self.depth is None:
            return frame
        try:
            estimated = self.depth(frame.image, conditioning.camera)
        except DepthError:  # nothing but sky
            return frame
        known = np.where(covered, depth, np.float32(0))
        if planes is not None:
            _, plane, likely = planes
            coarse = (slice(None, None, COARSE),) * 2
            seen = complete_depth(known[coarse], estimated[coarse])
            seen = cv2.resize(seen, known.shape[::-1], interpolation=cv2.INTER_NEAREST)
            near = (plane < seen * PLANE_WITHIN) & (plane * PLANE_WITHIN > seen)
            known = np.where((likely > PLANE_LIKELY) & near, plane, known)
        return replace(frame, depth=complete_depth(known, estimated))

    def _remembered(self, conditioning: Conditioning, index: int, warped: WarpedView | None) -> PipelineFrame:
        """What memory alone makes of a view; where nothing of it is shown, its depth alone."""
        if self.compose_observed:
            warped = warped or self._memory.warp(conditioning, index)
            return self._memory.label_provenance(conditioning, index, warped)
        depth = fill_depth(conditioning.renders.depth[index].cpu().numpy()) if warped is None else warped.depth
        image = np.zeros((*depth.shape, 3), np.uint8) if warped is None else warped.image
        return PipelineFrame(image, depth, np.zeros(depth.shape, bool))

    # --- memory of the device ----------------------------------------------------------------------------------------

    def _free(self) -> None:
        if self.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()

    def _too_large(self, conditioning: Conditioning, why: str) -> str:
        camera = conditioning.camera
        height, width = self.settings.image_size_for(camera.height, camera.width)
        references = len(np.unique(conditioning.reference_index[conditioning.reference_index >= 0]))
        weights = sum(
            t.numel() * t.element_size() for m in (self.transformer, self.autoencoder) for t in m.parameters()
        )
        return (
            f"{self.device} has too little memory for {len(conditioning.world_from_camera) + 1} keyframes of "
            f"{width}x{height} with {references} references, beside weights of {weights / 2**30:.1f} GiB "
            f"({why.strip().splitlines()[0].rstrip('.')}). Ask for fewer views at a time, remember fewer views, use "
            "bfloat16, or use a larger or several GPUs."
        )
