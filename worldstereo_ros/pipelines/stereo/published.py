"""SpatialDreamer at its published size, as a painter of holes: Stable Video Diffusion and Stable Diffusion 2.1.

No trained weights of SpatialDreamer exist, neither the authors' nor ours. This builds its networks from the base models
that it begins with, so that weights can be trained, and loaded once there are some; until then, its pictures are those
of an untrained combination and of no use. The bundled network (`painting`) is the one to work with.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    UNet2DConditionModel,
    UNetSpatioTemporalConditionModel,
)
from torch.nn import functional

from worldstereo_ros.models.checkpoints.bounds import check_numbers
from worldstereo_ros.models.checkpoints.loading import BASE_STEM, build_on_meta
from worldstereo_ros.models.checkpoints.parameters import default_dtype, load_weights
from worldstereo_ros.models.checkpoints.weights import CheckpointError, WeightSet, open_weights, read_json
from worldstereo_ros.models.stereo_unets import StereoUNets, deviation_of
from worldstereo_ros.pipelines.stereo.settings import PUBLISHED
from worldstereo_ros.pipelines.stereo.warp import WarpedEye
from worldstereo_ros.utils.errors import InputError

CONDITIONING_FOLDER = "stereo"  # beside SVD's parts: weights of `StereoConditioning`, once there are some
STEPS, WINDOW_FRAMES = 25, 4

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Frame:
    """What a frame gives the network: images (3, H, W) in [-1, 1], mask (1, H, W), and its noise (c, h, w)."""

    reference: torch.Tensor
    filled: torch.Tensor
    painted: torch.Tensor
    number: int


class StereoPipeline:
    """Paints holes with the published networks; frames in order, each with those before it.

    Attributes:
        unets: denoiser and RefinerNet.
        autoencoder: Stable Video Diffusion's.
        scheduler: Stable Video Diffusion's.
        steps: denoising steps.
        window: frames that are denoised together; the last one is used.
        trained: weights of what connects the networks were loaded.
    """

    name = PUBLISHED

    def __init__(
        self, unets: StereoUNets, autoencoder: AutoencoderKLTemporalDecoder, scheduler: EulerDiscreteScheduler, *,
        steps: int = STEPS, window: int = WINDOW_FRAMES, seed: int = 0, trained: bool = False,
    ) -> None:  # fmt: skip
        """Puts the parts together; see `from_pretrained`.

        Raises:
            InputError: a number is too small.
            CheckpointError: the autoencoder has other latents than the networks.
        """
        if steps < 1 or window < 1:
            raise InputError(f"{steps} steps and a window of {window} frames were given; at least 1 was expected.")
        if autoencoder.config.latent_channels != unets.denoiser.config.out_channels:
            raise CheckpointError(
                f"The autoencoder has {autoencoder.config.latent_channels} channels of latents and the denoiser "
                f"{unets.denoiser.config.out_channels}; the same number was expected."
            )
        self.unets, self.autoencoder, self.scheduler = unets, autoencoder, scheduler
        self.steps, self.window, self.seed, self.trained = steps, window, seed, trained
        self._frames: list[_Frame] = []
        self._count = 0

    @classmethod
    def from_pretrained(
        cls, svd: Path | str, *, refiner: Path | str, device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None, steps: int = STEPS, window: int = WINDOW_FRAMES, seed: int = 0,
    ) -> StereoPipeline:  # fmt: skip
        """Builds the networks from folders of base models in diffusers' layout, with safetensors weights.

        Args:
            svd: folder of Stable Video Diffusion: unet, vae, scheduler; and `stereo`, if what connects the networks is
                trained. A denoiser whose input is widened already is loaded as it is.
            refiner: folder of Stable Diffusion 2.1: unet.
            device: torch device.
            dtype: of the weights; None: bfloat16 on CUDA, float32 elsewhere.
            steps, window, seed: see the class.

        Raises:
            InputError: files are missing; all of them are named.
            CheckpointError: a file is damaged, or networks do not fit each other.
        """
        svd, refiner, device = Path(svd), Path(refiner), torch.device(device)
        scheduler_file = svd / "scheduler" / "scheduler_config.json"
        folders = [svd / "unet", svd / "vae", refiner / "unet"]
        expected = [*(folder / "config.json" for folder in folders), scheduler_file]
        missing = [str(file) for file in expected if not file.is_file()]
        missing += [str(folder / f"{BASE_STEM}.safetensors") for folder in folders if _stem(folder) is None]
        if missing:
            raise InputError(
                "The published stereo model lacks files of its base models: " + ", ".join(missing) + ". Folders of "
                "Stable Video Diffusion (unet, vae, scheduler) and Stable Diffusion 2.1 (unet) in diffusers' layout, "
                "with safetensors weights, were expected."
            )
        dtype = dtype or default_dtype(device)
        # All headers are read before memory is taken.
        weights = [open_weights(folder, _stem(folder) or BASE_STEM) for folder in folders]
        denoiser = _load(UNetSpatioTemporalConditionModel, folders[0], weights[0], device, dtype)
        autoencoder = _load(AutoencoderKLTemporalDecoder, folders[1], weights[1], device, dtype)
        unets = StereoUNets(denoiser, _load(UNet2DConditionModel, folders[2], weights[2], device, dtype))
        trained = (svd / CONDITIONING_FOLDER).is_dir()
        if trained:
            load_weights(unets.conditioning, open_weights(svd / CONDITIONING_FOLDER, BASE_STEM), device, dtype)
        else:
            logger.warning(
                "%s has no folder %s with trained weights of SpatialDreamer, and none are published: what it paints is "
                "of no use until they are trained.", svd, CONDITIONING_FOLDER,
            )  # fmt: skip
        unets.conditioning.to(device, dtype)
        config = read_json(scheduler_file)
        check_numbers(scheduler_file, config)
        try:
            scheduler = EulerDiscreteScheduler.from_config(config)
            scheduler.set_timesteps(steps)
        except Exception as error:  # an odd value can fail anywhere
            raise CheckpointError(f"{scheduler_file} describes no valid scheduler: {error}.") from None
        return cls(
            unets.requires_grad_(False).eval(), autoencoder.requires_grad_(False), scheduler,
            steps=steps, window=window, seed=seed, trained=trained,
        )  # fmt: skip

    @property
    def factor(self) -> int:
        """Pixels of a side of a latent."""
        return int(2 ** (len(self.autoencoder.config.block_out_channels) - 1))

    def restart(self) -> None:
        """Forgets all frames, as at a cut."""
        self._frames.clear()

    @torch.inference_mode()
    def paint(
        self, camera_image: np.ndarray, eye: WarpedEye, painted: np.ndarray, remembered: np.ndarray, *,
        left: bool = False, offset: float = 0.0,
    ) -> np.ndarray:  # fmt: skip
        """Paints holes; see `painting.NetworkPainter.paint`. Only pixels of `painted` change."""
        self._count += 1
        images = [image[:, ::-1] if left else image for image in (camera_image, eye.image)]  # networks know right eyes
        mask = torch.from_numpy(np.ascontiguousarray(painted[:, ::-1] if left else painted, np.float32))[None]
        reference, filled = (
            torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 127.5 - 1 for image in images
        )
        self._frames = [*self._frames, _Frame(reference, filled, mask, self._count)][-self.window :]
        if not painted.any():
            return eye.image
        clip = self._frames
        made = self.generate(
            *(torch.stack([getattr(frame, part) for frame in clip]) for part in ("reference", "filled", "painted")),
            numbers=[frame.number for frame in clip],
        )[-1]
        image = ((made + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
        return np.where(painted[..., None], image[:, ::-1] if left else image, eye.image)

    @torch.inference_mode()
    def generate(
        self, reference: torch.Tensor, filled: torch.Tensor, painted: torch.Tensor, *,
        numbers: list[int] | None = None, on_denoised: Callable[[int, int], None] | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """Paints a clip of right eyes.

        Args:
            reference: (F, 3, H, W) the camera's images in [-1, 1].
            filled: (F, 3, H, W) the warped eyes, holes filled.
            painted: (F, 1, H, W) 1 = to be painted.
            numbers: of the frames, which decide on their noise; None: 0 to F - 1.
            on_denoised: called with the step's number from 1, and how many there are; may raise to cancel.

        Returns:
            (F, 3, H, W) on the CPU; where nothing is to be painted, exactly `filled`: such pixels never pass the
            autoencoder.

        Raises:
            InputError: shapes do not fit.
        """
        frames, _, height, width = filled.shape
        if reference.shape != filled.shape or painted.shape != (frames, 1, height, width):
            raise InputError(
                f"The clip has shapes {tuple(reference.shape)}, {tuple(filled.shape)} and {tuple(painted.shape)}; "
                "(F, 3, H, W) twice and (F, 1, H, W) were expected."
            )
        parameter = self.unets.denoiser.conv_in.weight
        device, dtype = parameter.device, parameter.dtype
        step = self.factor * 2 ** (len(self.unets.denoiser.config.block_out_channels) - 1)
        sides = (0, -width % step, 0, -height % step)
        wide = [functional.pad(x.to(device, dtype), sides, mode="replicate") for x in (reference, filled)]
        mask = functional.pad(painted.to(device, dtype), sides)
        scale = self.autoencoder.config.scaling_factor
        eye, warped = (self._encode(images)[None] for images in wide)
        small = functional.max_pool2d(mask, self.factor)[None]
        deviation = deviation_of(scale * warped, scale * eye)
        noise = [self._noise(number, warped.shape[2:]) for number in (numbers or range(frames))]
        self.scheduler.set_timesteps(self.steps, device=device)
        latents = torch.stack(noise)[None].to(device) * self.scheduler.init_noise_sigma
        with self.unets.reference(scale * eye, deviation):
            for index, time in enumerate(self.scheduler.timesteps):
                given = self.scheduler.scale_model_input(latents, time).to(dtype)
                predicted = self.unets(given, time, warped, small)
                latents = self.scheduler.step(predicted.float(), time, latents).prev_sample
                if on_denoised is not None:
                    on_denoised(index + 1, self.steps)
        decoded = self.autoencoder.decode((latents[0] / scale).to(dtype), num_frames=frames).sample
        decoded = decoded[..., :height, :width].float().cpu().clamp(-1, 1)
        return torch.where(painted.cpu() > 0.5, decoded, filled.cpu())

    def _encode(self, images: torch.Tensor) -> torch.Tensor:
        """(F, c, h, w) unscaled latents, one frame at a time."""
        return torch.cat([self.autoencoder.encode(image[None]).latent_dist.mode() for image in images])

    def _noise(self, number: int, shape: torch.Size) -> torch.Tensor:
        """Noise of a frame: the same in each window, so that windows agree."""
        generator = torch.Generator().manual_seed(hash((self.seed, number)) % 2**63)
        return torch.randn(tuple(shape), generator=generator)


def _stem(folder: Path) -> str | None:
    """Stem of the safetensors weights in a folder; None if there are none."""
    for stem in (BASE_STEM, f"{BASE_STEM}.fp16"):
        if any((folder / f"{stem}{ending}").is_file() for ending in (".safetensors", ".safetensors.index.json")):
            return stem
    return None


def _load(kind: Any, folder: Path, weights: WeightSet, device: torch.device, dtype: torch.dtype) -> Any:
    """Builds a model of diffusers and loads its weights."""
    file = folder / "config.json"
    config: Mapping[str, Any] = read_json(file)
    if config.get("_class_name") != kind.__name__:
        raise CheckpointError(f"{folder} has a {config.get('_class_name')}; {kind.__name__} was expected.")
    check_numbers(file, config)
    model = build_on_meta(kind, file, config, kind.__name__)
    load_weights(model, weights, device, dtype)
    return model
