"""The WorldStereo pipeline: a diffusion model, conditioned on memory, generates what memory lacks.

For each clip:

1. Start view, renders, cameras and references become keyframes (`conditioning.py`), and these the inputs of the
   transformer (`model_inputs.py`).
2. The transformer denoises the latents of the clip: 40 steps with guidance, or 4 steps of the distilled model.
3. Keyframes are decoded lazily, one by one, and yielded at once.
4. Observed and estimated pixels of memory, at full resolution, replace those of the model and fade into them
   (`compositing.py`). Only these pixels are labelled as such. Depth is that of the cloud, completed by planes and the
   depth network.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from worldstereo_ros.depth.estimators import DepthEstimator, load_small_depth
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.imaging.inpainting import fill_depth
from worldstereo_ros.imaging.resizing import resize_image
from worldstereo_ros.models import (
    CheckpointConfig,
    WorldStereoTransformer,
    find_checkpoint,
    load_autoencoder,
    load_transformer,
    make_scheduler,
)
from worldstereo_ros.models.checkpoints.parameters import default_dtype
from worldstereo_ros.models.checkpoints.weights import CheckpointError
from worldstereo_ros.models.hole_refiner import HoleRefiner, load_hole_refiner
from worldstereo_ros.pipelines.base import Conditioning, ModelError, OnStep, PipelineFrame
from worldstereo_ros.pipelines.diffusion.denoising import denoise, guide
from worldstereo_ros.pipelines.diffusion.distributed import load_distributed_transformer, process_count
from worldstereo_ros.pipelines.diffusion.text_encoders import (
    ImageEncoder,
    NullTextEncoder,
    TextEncoder,
    load_image_encoder,
    load_text_encoder,
)
from worldstereo_ros.pipelines.geometric.coincidence import coincident_imagination
from worldstereo_ros.pipelines.geometric.far_view import far_pixels, show_far
from worldstereo_ros.pipelines.geometric.layout import Layout, LayoutEstimator
from worldstereo_ros.pipelines.geometric.pipeline import GeometricPipeline
from worldstereo_ros.pipelines.geometric.warped_view import WarpedView
from worldstereo_ros.pipelines.worldstereo.compositing import compose, mix_with_memory
from worldstereo_ros.pipelines.worldstereo.conditioning import make_keyframes
from worldstereo_ros.pipelines.worldstereo.imagined_depth import complete_frame, render_planes
from worldstereo_ros.pipelines.worldstereo.memory_errors import out_of_memory_message
from worldstereo_ros.pipelines.worldstereo.model_inputs import MASK_CHANNELS, ModelInputs, build_model_inputs
from worldstereo_ros.pipelines.worldstereo.refinement import fill_frame
from worldstereo_ros.pipelines.worldstereo.video_condition import VideoCondition, load_video_condition
from worldstereo_ros.utils.errors import InputError

STEPS = 40  # of the variants that are not distilled
PATCH_PX = 16  # pixels of a token along each side

# (pipeline, step, timestep, {"latents": ...}) to a dict with the tensors to replace, or None; as in diffusers.
StepEnd = Callable[["WorldStereoPipeline", int, torch.Tensor, dict[str, torch.Tensor]], dict[str, torch.Tensor] | None]


class WorldStereoPipeline:
    """Imagines views with a WorldStereo checkpoint.

    A single device needs no process group; under `torchrun`, several processes share the work of the transformer
    (`diffusion/distributed.py`).

    Attributes:
        config: configuration of the checkpoint.
        name: name for logs and tables; the variant by default.
        clip_length: views of one call: the keyframes of the model without the first, which is the start view.
        distilled: whether the model was distilled to few steps.
        steps: denoising steps; None: those of the variant.
        guidance: scale of classifier-free guidance, 1 = none; that of the checkpoint by default.
        compose_observed: replace pixels that a camera saw by those of memory and label them as observed or estimated.
            If False, every pixel is the model's, and imagined.
        fill_clip: extend every clip to the number of keyframes that the model was trained with, by repeating the last
            pose. A shorter path then costs as much as a full one.
        callback_on_step_end: called after every step as in diffusers; may replace `latents`.
        depth: estimates depth of imagined pixels; None: depth is filled smoothly from memory.
        fill: what holes show: `smooth`, the transformer's image, or `planes` of the layout as far as they are likely;
            by default planes, for models with a layout.
        refiner: refines holes with planes; None: planes as they are.
        geometric: the geometric pipeline, which warps views from memory and labels their provenance.
    """

    selects_references = True

    def __init__(
        self,
        config: CheckpointConfig,
        transformer: WorldStereoTransformer,
        autoencoder: Any,
        scheduler: Any,
        text_encoder: TextEncoder | NullTextEncoder,
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
        refiner: HoleRefiner | None = None,
        fill: str | None = None,
    ) -> None:
        """Assembles the pipeline from loaded parts; `from_pretrained` loads them.

        Args:
            config: configuration of the checkpoint.
            transformer, autoencoder, scheduler, text_encoder: models on `device`, and a diffusers scheduler.
            image_encoder: None for a backbone without image embedding.
            video_condition: makes the condition latents of `full_vae`; None: every frame is encoded on its own.
            device: device of the models.
            name, steps, compose_observed, fill_clip, callback_on_step_end, depth, refiner, fill: see the class.

        Raises:
            InputError: `steps` is less than 1.
        """
        if steps is not None and steps < 1:
            raise InputError(f"{steps} denoising steps were requested; at least one is needed.")
        self.config = config
        self.transformer, self.autoencoder, self.scheduler = transformer, autoencoder, scheduler
        self.text_encoder, self.image_encoder = text_encoder, image_encoder
        self.video_condition = video_condition
        self.device = torch.device(device)
        self.name = name or config.variant
        self.clip_length = config.nframe - 1
        self.distilled = config.distilled
        self.steps = steps
        self.guidance = config.guidance
        self.compose_observed = compose_observed
        self.fill_clip = fill_clip
        self.callback_on_step_end = callback_on_step_end
        self.depth = depth
        self.refiner, self.fill = refiner, fill or ("planes" if config.uses_layout else "smooth")
        self.geometric, self._estimate_layout = GeometricPipeline(), LayoutEstimator()

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
        """Loads a checkpoint and, from its base model, the parts that it does not contain.

        Args:
            model: `small`, a folder or a hub id, see `models.find_checkpoint`.
            variant: one of `models.VARIANTS`, with or without `worldstereo-`; None: see `models.find_checkpoint`.
            device: where it runs.
            dtype: dtype of the networks; None: bfloat16 on CUDA, float32 on the CPU.
            reference_attention: full, paired or correspondence.
            offload: keep the text encoder in main memory and move it to the device only for a new prompt.
            local_files_only: never download from the hub.
            parallel: under `torchrun`, share the transformer's work with the other processes.
            options: keyword arguments of the class.

        Raises:
            CheckpointError: a part is missing, damaged or too large.
        """
        device = torch.device(device)
        dtype = dtype or default_dtype(device)
        checkpoint = find_checkpoint(model, variant, local_files_only=local_files_only)
        config = checkpoint.config
        if parallel and process_count() > 1:
            transformer: Any = load_distributed_transformer(checkpoint, device, dtype, reference_attention)
        else:
            transformer = load_transformer(
                checkpoint, device=device, dtype=dtype, reference_attention=reference_attention
            )
        if transformer.config.image_dim and not config.uses_text:
            raise CheckpointError(
                f"The config.json in {checkpoint.folder} has text_encoder none, but its base has an image embedding, "
                "which needs 512 text tokens. Remove text_encoder from config.json, or use a base without image "
                "embedding."
            )
        parts = checkpoint.base("vae")
        refiner = {"refiner": load_hole_refiner(parts / "refiner", device)}
        return cls(
            config,
            transformer,
            load_autoencoder(checkpoint, device=device, dtype=dtype),
            make_scheduler(config.raw, None if config.distilled else checkpoint.base("scheduler")),
            load_text_encoder(checkpoint, device, dtype, offload=offload)
            if config.uses_text
            else NullTextEncoder(transformer.config.text_dim, device),
            load_image_encoder(checkpoint, device, dtype) if transformer.config.image_dim else None,
            video_condition=load_video_condition(checkpoint, device, dtype),
            device=device,
            **{"depth": load_small_depth(parts / "depth", device), **refiner, **options},
        )

    def __call__(
        self, conditioning: Conditioning, *, prompt: str, generator: torch.Generator, on_step: OnStep
    ) -> Iterator[PipelineFrame]:
        """Yields the frames of the clip in order, each as soon as it is decoded.

        Args:
            conditioning: what memory holds about the clip.
            prompt: description of the place; ignored by models without text encoder.
            generator: draws the noise.
            on_step: called as on_step(stage, step, steps) before each step of the stages warping, encoding, denoising
                and decoding; may raise `Cancelled`.

        Raises:
            ModelError: the device is out of memory, or the model returned values that are not finite.
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
        if failure:  # raised here, where no traceback keeps the tensors alive
            size = self.config.image_size_for(conditioning.camera.height, conditioning.camera.width)
            networks = (self.transformer, self.autoencoder)
            raise ModelError(out_of_memory_message(self.device, size, networks, conditioning, failure))

    # --- one clip ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _encode(
        self, conditioning: Conditioning, prompt: str, warped_views: list[WarpedView], layout: Layout | None
    ) -> tuple[ModelInputs, list[torch.Tensor]]:
        """What stays the same in all steps: inputs of the transformer, text embeddings (with and without prompt)."""
        camera = conditioning.camera
        height, width = self.config.image_size_for(camera.height, camera.width)
        correspondence = self.transformer.config.reference_attention == "correspondence"
        keyframes = make_keyframes(
            conditioning,
            (height, width),
            self.device,
            use_references=self.config.has_memory_branch,
            min_count=self.config.nframe if self.fill_clip else None,
            correspondence_tokens=(height // PATCH_PX, width // PATCH_PX) if correspondence else None,
            warped_views=warped_views if self.config.fills_render_holes else None,
            layout=layout,
        )
        inputs = build_model_inputs(
            keyframes,
            self.autoencoder,
            memory_branch=self.transformer.has_memory_branch,
            video_condition=self.video_condition,
        )
        if self.image_encoder is not None:
            start = conditioning.start_view.resized(width, height)
            inputs.arguments["encoder_hidden_states_image"] = self.image_encoder(start.image)
        prompts = [self.text_encoder(prompt)]
        if self.guidance > 1:
            prompts.append(self.text_encoder(self.config.negative_prompt))
        return inputs, prompts

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
        """(C, F, h, w) latents of the keyframes, including the start view."""
        steps = self.steps or (None if self.distilled else STEPS)
        self.scheduler.set_timesteps(steps, device=self.device)
        on_step("encoding", 0, len(self.scheduler.timesteps))
        inputs, prompts = self._encode(conditioning, prompt, warped_views, layout)
        b, channels, *size = inputs.condition.shape
        noise = torch.randn(
            (b, channels - MASK_CHANNELS, *size), generator=generator, device=generator.device, dtype=torch.float32
        )

        def predict(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            hidden = torch.cat((latents, inputs.condition.to(latents.dtype)), dim=1)
            velocities = [
                self.transformer(hidden, timestep.expand(1), text, return_dict=False, **inputs.arguments)[0].float()
                for text in prompts
            ]
            return guide(velocities, self.guidance)

        callback = self.callback_on_step_end
        latents = denoise(
            predict,
            self.scheduler,
            noise.to(self.device),
            on_step=on_step,
            on_step_end=None if callback is None else partial(callback, self),
            name=self.name,
            dtype=self.transformer.dtype,
        )
        return latents[0]

    def _imagine(
        self, conditioning: Conditioning, prompt: str, generator: torch.Generator, on_step: OnStep
    ) -> Iterator[PipelineFrame]:
        # A model with filled render holes needs all warped views first; of a size that it does not use, only reduced.
        # The provenance of the whole ones is labelled view by view, just before each is yielded.
        divisor = self._warp_divisor(conditioning.camera)
        warped_views: list[WarpedView] = []
        if self.config.fills_render_holes:
            warped_views = self.geometric.warp_all(conditioning, on_step, divisor=divisor)
        layout = self._estimate_layout(conditioning.references) if self.config.uses_layout else None
        latents = self._denoise(conditioning, prompt, generator, on_step, warped_views, layout)
        count = len(conditioning.world_from_camera)
        in_turn = self.geometric.warp_in_turn(conditioning) if warped_views and divisor > 1 else iter(warped_views)
        with torch.no_grad():
            images = self.autoencoder.decode_frames(latents[:, 1 : count + 1])
        for index in range(count):
            on_step("decoding", index, count)
            with torch.no_grad():
                decoded = next(images)
            if not torch.isfinite(decoded).all():
                raise ModelError(f"The autoencoder returned values that are not finite in view {index + 1} of {count}.")
            decoded = (decoded.float().clamp(-1, 1).add(1).mul(127.5).round()).to(torch.uint8)
            image = decoded.permute(1, 2, 0).cpu().numpy()
            warped = next(in_turn, None)
            frame = self._frame_of_memory(conditioning, index, warped)
            image = resize_image(image, frame.image.shape[1], frame.image.shape[0], enlarge=cv2.INTER_CUBIC)
            past = self._imagined_before(conditioning, index, frame)
            if past is not None:
                image = past.image
            elif warped is not None and self.compose_observed:
                image = mix_with_memory(image, warped, conditioning, index)
            composed = compose(frame, image)
            planes = None
            if layout is not None:
                planes = render_planes(composed, conditioning, index, layout, self.geometric.threads)
                if self.fill == "planes" and warped is not None and self.compose_observed and past is None:
                    inputs = (composed, warped, conditioning, index, layout, planes, self.refiner)
                    composed = fill_frame(*inputs, seed=generator.initial_seed(), threads=self.geometric.threads)
            far = None
            if layout is not None and planes is not None and self.fill == "planes":
                far = far_pixels(layout, conditioning, index, planes, composed.seen)
                composed = show_far(composed, far)
            # The depth network sees more in the filled image.
            detected = 0 if layout is None else layout.detected
            composed = complete_frame(composed, conditioning, index, planes, self.depth, detected=detected)
            if far is not None and composed.depth is not None:  # no length is known of what is far
                composed = replace(composed, depth=np.where(far.found, np.float32(0), composed.depth))
            has_memory_image = self.compose_observed or self.config.fills_render_holes
            yield composed if has_memory_image else replace(composed, memory_image=None)

    def _warp_divisor(self, camera: Camera) -> int:
        """By how much views may be reduced, and still have twice the width and height of the model's images."""
        height, width = self.config.image_size_for(camera.height, camera.width)
        return max(1, min(camera.height // (2 * height), camera.width // (2 * width)))

    def _imagined_before(self, conditioning: Conditioning, index: int, frame: PipelineFrame) -> View | None:
        """The view as it was imagined from this pose before; None if there is none, or more is known of it by now."""
        if not self.compose_observed:
            return None
        camera, pose = conditioning.camera, conditioning.world_from_camera[index]
        return coincident_imagination(conditioning.references, camera, pose, frame.seen)

    def _frame_of_memory(self, conditioning: Conditioning, index: int, warped: WarpedView | None) -> PipelineFrame:
        """A view from memory alone. If nothing of it is composited, only its depth matters."""
        if self.compose_observed:
            warped = warped or self.geometric.warp(conditioning, index)
            return self.geometric.label_provenance(conditioning, index, warped)
        depth = fill_depth(conditioning.renders.depth[index].cpu().numpy()) if warped is None else warped.depth
        image = np.zeros((*depth.shape, 3), np.uint8) if warped is None else warped.image
        return PipelineFrame(image, depth, np.zeros(depth.shape, bool))

    # --- memory of the device ----------------------------------------------------------------------------------------

    def _free(self) -> None:
        if self.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
