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
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldstereo_ros.depth.estimators import DepthEstimator, load_small_depth
from worldstereo_ros.geometry.cameras import Camera
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
from worldstereo_ros.pipelines.geometric.layout import Layout, LayoutEstimator
from worldstereo_ros.pipelines.geometric.pipeline import GeometricPipeline
from worldstereo_ros.pipelines.geometric.warped_view import WarpedView
from worldstereo_ros.pipelines.worldstereo.conditioning import make_keyframes
from worldstereo_ros.pipelines.worldstereo.frames import FrameMaker
from worldstereo_ros.pipelines.worldstereo.memory_errors import out_of_memory_message
from worldstereo_ros.pipelines.worldstereo.model_inputs import MASK_CHANNELS, ModelInputs, build_model_inputs
from worldstereo_ros.pipelines.worldstereo.video_condition import VideoCondition, load_video_condition
from worldstereo_ros.utils.ahead import compute_ahead
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
            threads=self.geometric.threads,
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
        # A model with filled render holes needs all warped views first. At the start of a path they are reduced, for
        # the first view to come soon, and each is warped at its own size later.
        divisor = self._warp_divisor(conditioning.camera) if conditioning.start_view.is_observation else 1
        warped_views: list[WarpedView] = []
        if self.config.fills_render_holes:
            warped_views = self.geometric.warp_all(conditioning, on_step, divisor=divisor)
        layout = self._estimate_layout(conditioning.references) if self.config.uses_layout else None
        latents = self._denoise(conditioning, prompt, generator, on_step, warped_views, layout)
        maker = FrameMaker(
            conditioning,
            self.geometric,
            warped_views=warped_views if warped_views and divisor == 1 else None,
            shows_memory=self.config.fills_render_holes,
            compose_observed=self.compose_observed,
            layout=layout,
            fill=self.fill,
            refiner=self.refiner,
            depth=self.depth,
            seed=generator.initial_seed(),
        )
        images = enumerate(self._decode(latents, len(conditioning.world_from_camera), on_step))
        yield from compute_ahead(lambda item, threads: maker.make(*item, threads), images, self.geometric.threads)

    def _decode(self, latents: torch.Tensor, count: int, on_step: OnStep) -> Iterator[np.ndarray]:
        """The images (h, w, 3) uint8 of the keyframes after the start view, each as soon as it is decoded."""
        with torch.no_grad():
            images = self.autoencoder.decode_frames(latents[:, 1 : count + 1])
        for index in range(count):
            on_step("decoding", index, count)
            with torch.no_grad():
                decoded = next(images)
            if not torch.isfinite(decoded).all():
                raise ModelError(f"The autoencoder returned values that are not finite in view {index + 1} of {count}.")
            decoded = (decoded.float().clamp(-1, 1).add(1).mul(127.5).round()).to(torch.uint8)
            yield decoded.permute(1, 2, 0).cpu().numpy()

    def _warp_divisor(self, camera: Camera) -> int:
        """By how much views may be reduced, and still have twice the width and height of the model's images."""
        height, width = self.config.image_size_for(camera.height, camera.width)
        return max(1, min(camera.height // (2 * height), camera.width // (2 * width)))

    # --- memory of the device ----------------------------------------------------------------------------------------

    def _free(self) -> None:
        if self.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
