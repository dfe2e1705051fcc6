"""The AnyRecon pipeline: unordered photographs and a cloud condition a diffusion model (arXiv 2604.19747).

For each clip:

1. The captures that saw most of what the targets show are selected (`captures.py`), and put in front of the renders of
   the targets, whose holes are black (`sequence.py`).
2. The transformer denoises the latents of all frames, captures among them, in four steps.
3. Targets are decoded lazily, one by one, and yielded at once.
4. Observed and estimated pixels of memory replace those of the model and fade into them, as in the WorldStereo
   pipeline. Only these pixels are labelled as such. Depth is that of the cloud, completed by the depth network.
"""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from worldstereo_ros.depth.alignment import DepthError, complete_depth
from worldstereo_ros.depth.estimators import DepthEstimator, SmallDepth
from worldstereo_ros.imaging.inpainting import fill_depth
from worldstereo_ros.imaging.resizing import resize_image
from worldstereo_ros.models.autoencoders.tiling import Tiling, decode_frames_tiled
from worldstereo_ros.models.checkpoints.parameters import default_dtype
from worldstereo_ros.models.checkpoints.wan_loading import (
    load_wan_autoencoder,
    load_wan_transformer,
    open_wan_transformer,
)
from worldstereo_ros.models.checkpoints.weights import CheckpointError
from worldstereo_ros.models.schedulers import DMDScheduler
from worldstereo_ros.models.worldstereo.context_window import ContextWindow
from worldstereo_ros.models.worldstereo.transformer import WorldStereoTransformer
from worldstereo_ros.pipelines.anyrecon.captures import select_captures
from worldstereo_ros.pipelines.anyrecon.encoders import blank_text, load_clip
from worldstereo_ros.pipelines.anyrecon.files import find_files
from worldstereo_ros.pipelines.anyrecon.published_rendering import shifted_half_pixel
from worldstereo_ros.pipelines.anyrecon.sequence import (
    MAX_CAPTURES,
    PREVIOUS_FRAMES,
    RENDERS_PER_CHUNK,
    SequenceInputs,
    build_sequence,
    frame_order,
)
from worldstereo_ros.pipelines.base import Conditioning, ModelError, OnStep, PipelineFrame
from worldstereo_ros.pipelines.diffusion.denoising import denoise
from worldstereo_ros.pipelines.geometric.pipeline import GeometricPipeline
from worldstereo_ros.pipelines.worldstereo.compositing import compose
from worldstereo_ros.utils.errors import InputError

STEPS, SHIFT = 4, 5.0
SIZE = (512, 896)  # height, width that the published weights were trained with
ATTENTIONS = ("dense", "sparse")
MAX_CPU_PARAMETERS = 2 * 10**9  # a larger transformer would take hours a view on a CPU
WHITE = np.full((1, 1), 255, np.uint8)


class AnyReconPipeline:
    """Imagines views with AnyRecon's weights, or those of another LoRA of its kind.

    Attributes:
        name: name for logs and tables.
        clip_length: targets of one call.
        size: (height, width) of the model's images; all images are stretched to it.
        steps: denoising steps.
        tiling: tiles of the decoder; None: frames are decoded whole.
        max_captures: most captures of a call.
        half_pixel_shift: shift exact renders by half a pixel and blur them over 2x2 pixels, as those that the published
            weights were trained with. False where the renders come from `published_rendering.render_published`.
        compose_observed: replace pixels that a camera saw by those of memory and label them as observed or estimated.
            If False, every pixel is the model's, and imagined.
        depth: estimates depth of imagined pixels; None: depth is filled smoothly from memory.
        geometric: the geometric pipeline, which warps views from memory and labels their provenance.
    """

    selects_references = True

    def __init__(
        self,
        transformer: WorldStereoTransformer,
        autoencoder: Any,
        text: torch.Tensor,
        image_encoder: Any,
        *,
        device: str | torch.device = "cpu",
        name: str = "anyrecon",
        size: tuple[int, int] = SIZE,
        steps: int = STEPS,
        tiling: Tiling | None = Tiling(),
        attention: str = "dense",
        context_window: ContextWindow | None = None,
        max_captures: int = MAX_CAPTURES,
        clip_length: int = RENDERS_PER_CHUNK,
        half_pixel_shift: bool = True,
        compose_observed: bool = True,
        depth: DepthEstimator | None = None,
    ) -> None:
        """Assembles the pipeline from loaded parts; `from_pretrained` loads them.

        Args:
            transformer, autoencoder: networks on `device`.
            text: (1, 512, text_dim) embedding of the blank prompt, see `encoders.blank_text`.
            image_encoder: maps the first frame (3, H, W) in [-1, 1] to (1, tokens, image_dim).
            device: device of the models.
            attention: `dense`, or `sparse` for weights that were trained with the context window.
            context_window: the window of `sparse`; None: the published one.
            name, size, steps, tiling, max_captures, clip_length, half_pixel_shift, compose_observed, depth: see the
                class.

        Raises:
            InputError: a number is out of range, or there is no such attention.
        """
        if steps < 1 or max_captures < 1 or clip_length < 1 or min(size) < 1:
            raise InputError(
                f"steps is {steps}, max_captures {max_captures}, clip_length {clip_length} and size {size}; at least 1 "
                "was expected of each."
            )
        if attention not in ATTENTIONS:
            raise InputError(f"The attention '{attention}' is unknown; {' or '.join(ATTENTIONS)} was expected.")
        self.transformer, self.autoencoder, self.image_encoder = transformer, autoencoder, image_encoder
        self.text = text
        self.device = torch.device(device)
        self.name, self.size, self.steps, self.tiling = name, size, steps, tiling
        self.max_captures, self.clip_length = max_captures, clip_length
        self.half_pixel_shift, self.compose_observed = half_pixel_shift, compose_observed
        self.depth = depth
        self.geometric = GeometricPipeline()
        transformer.set_context_window((context_window or ContextWindow()) if attention == "sparse" else None)
        self._last_images: list[np.ndarray] = []

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        lora: str | Path | None = None,
        base: str | Path | None = None,
        lora_scale: float = 1.0,
        lora_ignore: Collection[str] = (),
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> AnyReconPipeline:
        """Loads Wan 2.1's own files and a LoRA.

        Args:
            path: folder with the LoRA or with everything, or the LoRA file.
            lora, base: LoRA file and folder of Wan 2.1's files, see `files.find_files`.
            lora_scale: factor of the LoRA's change; 1 for published files.
            lora_ignore: names of tensors of the LoRA file to leave out.
            device: where it runs.
            dtype: dtype of the networks; None: bfloat16 on CUDA, float32 on the CPU.
            options: keyword arguments of the class.

        Raises:
            CheckpointError: a file is missing, damaged, of another model, or too large for the device.
            InputError: the transformer has the size of the published one, and the device is a CPU.
        """
        device = torch.device(device)
        dtype = dtype or default_dtype(device)
        files = find_files(path, lora=lora, base=base)
        opened = open_wan_transformer(files.base, files.lora, lora_ignore=lora_ignore)
        config = opened.config
        if config["in_channels"] != 2 * config["out_channels"] + 4 or config["image_dim"] is None:
            raise CheckpointError(
                f"{files.base} has {config['in_channels']} channels and "
                f"{'no' if config['image_dim'] is None else 'an'} image embedding; an image-to-video model of Wan 2.1 "
                "(36 channels, with image embedding) was expected."
            )
        if device.type == "cpu" and opened.num_parameters > MAX_CPU_PARAMETERS:
            raise InputError(
                f"{files.base} has {opened.num_parameters / 1e9:.0f} billion parameters, which need a CUDA GPU (about "
                "45 GB for 40 frames of 896x512). Use device cuda on a machine that has one, or the model small, which "
                "runs on a CPU."
            )
        # The small parts first: what is wrong with them is known before the large one is read.
        text = blank_text(files.text, config["text_dim"])
        image_encoder = load_clip(files.clip, config["image_dim"], device)
        autoencoder = load_wan_autoencoder(files.autoencoder, device=device, dtype=dtype)
        transformer = load_wan_transformer(opened, device=device, dtype=dtype, lora_scale=lora_scale)
        options = {"depth": SmallDepth(device=device), **options}
        return cls(transformer, autoencoder, text.to(device), image_encoder, device=device, **options)

    # --- the published interface: images and masks -------------------------------------------------------------------

    def generate(
        self,
        frames: Sequence[np.ndarray],
        masks: Sequence[np.ndarray],
        *,
        first: int = 0,
        generator: torch.Generator | None = None,
        on_step: OnStep | None = None,
    ) -> Iterator[np.ndarray]:
        """Denoises a sequence and yields its frames, each as soon as it is decoded.

        Args:
            frames: T images (H', W', 3) uint8 RGB, captures first; holes of renders are black.
            masks: T masks (H'', W''), uint8 or bool, white or True = visible.
            first: the first frame to decode.
            generator: draws the noise; None: the published one, seed 1 on the CPU.
            on_step: called between steps; may raise `Cancelled`.

        Returns:
            An iterator over images (H, W, 3) uint8 RGB at the size of the model.

        Raises:
            InputError: a frame or mask is no image, or their numbers differ.
            ModelError: the model returned values that are not finite.
        """
        on_step = on_step or _ignore_step
        generator = torch.Generator().manual_seed(1) if generator is None else generator
        on_step("encoding", 0, self.steps)
        inputs = build_sequence(frames, masks, self.size, self.autoencoder, device=self.device)
        latents = self.denoise_sequence(inputs, generator, on_step)
        yield from self.decode(latents[:, first:], on_step)

    @torch.no_grad()
    def denoise_sequence(self, inputs: SequenceInputs, generator: torch.Generator, on_step: OnStep) -> torch.Tensor:
        """Takes the latents of a sequence from noise to a sample.

        Returns:
            (C, T, h, w) in the dtype of the transformer.

        Raises:
            ModelError: values are not finite.
        """
        dtype = self.transformer.dtype
        scheduler = DMDScheduler(start_timestep=1000 / self.steps, steps=self.steps, shift=SHIFT)
        noise = torch.randn(inputs.condition.shape, generator=generator, device=generator.device, dtype=torch.float32)
        channels = inputs.channels.to(self.device, dtype)
        text = self.text.to(dtype)
        image = self.image_encoder(inputs.frames[0]).to(self.device, dtype)

        def predict(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            hidden = torch.cat((latents, channels), dim=1)
            # The published network sees timesteps in its own dtype: 936 for 937.5 in bfloat16.
            seen = timestep.to(self.device, dtype).float().expand(1)
            return self.transformer(hidden, seen, text, image, return_dict=False)[0]

        latents = denoise(
            predict, scheduler, noise.to(self.device, dtype), on_step=on_step, name=self.name, dtype=dtype
        )
        return latents[0]

    def decode(self, latents: torch.Tensor, on_step: OnStep) -> Iterator[np.ndarray]:
        """Yields (H, W, 3) uint8 images of (C, T, h, w) latents, in order."""
        count = latents.shape[1]
        with torch.no_grad():
            if self.tiling is None:
                images = self.autoencoder.decode_frames(latents)
            else:
                images = decode_frames_tiled(self.autoencoder, latents, self.tiling)
        for index in range(count):
            on_step("decoding", index, count)
            with torch.no_grad():
                decoded = next(images).float()
            if not torch.isfinite(decoded).all():
                raise ModelError(f"The autoencoder returned values that are not finite in view {index + 1} of {count}.")
            # Cut off, not rounded, as in the reference.
            levels = decoded.add(1).mul(127.5).clamp(0, 255).to(torch.uint8)
            yield levels.permute(1, 2, 0).cpu().numpy()

    # --- the interface of all pipelines ------------------------------------------------------------------------------

    def __call__(
        self, conditioning: Conditioning, *, prompt: str, generator: torch.Generator, on_step: OnStep
    ) -> Iterator[PipelineFrame]:
        """Yields the frames of the clip in order, each as soon as it is decoded.

        Args:
            conditioning: what memory holds about the clip. The captures are the observations among its views.
            prompt: ignored: the model was trained with a blank prompt.
            generator: draws the noise.
            on_step: called as on_step(stage, step, steps) before each step of the stages encoding, denoising and
                decoding; may raise `Cancelled`.

        Raises:
            ModelError: the device is out of memory, or the model returned values that are not finite.
        """
        failure = ""
        try:
            yield from self._imagine(conditioning, generator, on_step)
        except torch.OutOfMemoryError as error:
            failure = str(error)
        except RuntimeError as error:
            if "allocate memory" not in str(error) or isinstance(error, ModelError):
                raise
            failure = str(error)
        finally:  # also when cancelled between two steps
            if self.device.type == "cuda":
                gc.collect()
                torch.cuda.empty_cache()
        if failure:  # raised here, where no traceback keeps the tensors alive
            raise ModelError(
                f"{self.device} has too little memory for {len(conditioning.world_from_camera)} targets and up to "
                f"{self.max_captures} captures of {self.size[1]}x{self.size[0]} "
                f"({failure.strip().splitlines()[0].rstrip('.')}). Lower max_captures or clip_length, use bfloat16, or "
                "use a larger GPU; the published size takes about 45 GB."
            )

    def _imagine(
        self, conditioning: Conditioning, generator: torch.Generator, on_step: OnStep
    ) -> Iterator[PipelineFrame]:
        frames, masks, first = self.assemble(conditioning)
        camera = conditioning.camera
        recent: list[np.ndarray] = []
        for index, image in enumerate(self.generate(frames, masks, first=first, generator=generator, on_step=on_step)):
            image = resize_image(image, camera.width, camera.height, enlarge=cv2.INTER_CUBIC)
            frame = self._compose(conditioning, index, image)
            recent = [*recent, frame.image][-PREVIOUS_FRAMES:]
            self._last_images = recent
            yield frame

    def assemble(self, conditioning: Conditioning) -> tuple[list[np.ndarray], list[np.ndarray], int]:
        """The sequence of a clip: images, masks, and the number of the first target among them.

        After a clip that this pipeline imagined, its last frames follow the captures.

        Args:
            conditioning: what memory holds about the clip.

        Raises:
            InputError: there is no observation to take as a capture.
        """
        renders = conditioning.renders
        chosen = conditioning.captures[: self.max_captures]
        if not chosen:
            captures = conditioning.observations or [v for v in conditioning.references if v.is_observation]
            selection = select_captures(
                captures,
                renders.depth.cpu().numpy(),
                conditioning.camera,
                conditioning.world_from_camera,
                limit=self.max_captures,
            )
            chosen = [captures[index] for index in selection.indices]
        if not chosen:
            raise InputError("The memory has no photograph: AnyRecon needs at least one capture.")
        images = [capture.image for capture in chosen]
        previous: list[np.ndarray] = []
        start = conditioning.start_view
        if not start.is_observation:
            continues = bool(self._last_images) and self._last_images[-1] is start.image
            previous = self._last_images if continues else [start.image]
        colour, covered = renders.colour.cpu().numpy(), renders.covered.cpu().numpy()
        black = [np.where(seen[..., None], image, np.uint8(0)) for image, seen in zip(colour, covered, strict=True)]
        targets = list(zip(black, covered, strict=True))
        if self.half_pixel_shift:
            targets = [shifted_half_pixel(image, seen) for image, seen in targets]
        order = frame_order(len(images), len(previous), len(targets))
        frames = [*images, *previous, *(image for image, _ in targets)]
        masks = [WHITE] * (len(images) + len(previous)) + [seen for _, seen in targets]
        assert [source.white_mask for source in order] == [mask is WHITE for mask in masks]
        return frames, masks, len(images) + len(previous)

    def _compose(self, conditioning: Conditioning, index: int, image: np.ndarray) -> PipelineFrame:
        """The frame with memory's pixels where a camera saw them, and with estimated depth where memory has none."""
        if self.compose_observed:
            warped = self.geometric.warp(conditioning, index)
            frame = compose(self.geometric.label_provenance(conditioning, index, warped), image)
        else:
            depth = fill_depth(conditioning.renders.depth[index].cpu().numpy())
            frame = PipelineFrame(image, depth, np.zeros(depth.shape, bool))
        covered = conditioning.renders.covered[index].cpu().numpy() | frame.observed
        if self.depth is None or frame.depth is None or covered.all():
            return frame
        try:
            estimated = self.depth(frame.image, conditioning.camera)
        except DepthError:  # nothing but sky
            return frame
        return replace(frame, depth=complete_depth(np.where(covered, frame.depth, np.float32(0)), estimated))


def _ignore_step(stage: str, step: int, steps: int) -> None:
    """The `on_step` of callers that pass none."""
