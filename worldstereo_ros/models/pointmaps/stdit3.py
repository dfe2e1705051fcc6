"""STDiT3, the transformer of Open-Sora 1.2, with the names and shapes of its published weights.

The network is `FactorisedTransformer` at its default size. For point maps it is fine-tuned with twice the input
channels, as Sora3R: the noisy latent of the point map, then the clean latent of the images. The weights of the second
half begin at 0, so that the widened network at first predicts what the published one does.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from torch.nn import functional

from worldstereo_ros.models.checkpoints.bounds import MAX_LAYERS, MAX_NUMBER, check_integer
from worldstereo_ros.models.checkpoints.loading import build_on_meta
from worldstereo_ros.models.checkpoints.weights import CheckpointError, read_json
from worldstereo_ros.models.factorised_transformer import BASE_SIDE, FactorisedTransformer
from worldstereo_ros.models.pointmaps.open_sora_files import assign, open_published
from worldstereo_ros.utils.errors import InputError

logger = logging.getLogger(__name__)

LATENT_PX = 8
FPS = 24.0  # frame rate that the published weights have seen most
# Constants that the published files hold beside the weights; they are computed here.
ROTARY_FREQUENCIES = "rope.freqs"
COMPUTED = (ROTARY_FREQUENCIES, "pos_embed.inv_freq")
WORK_PIXELS = "work_pixels"  # in `config.json` of a run: pixels of the images that it was fine-tuned with
INPUT_WEIGHT = "x_embedder.proj.weight"


class STDiT3(FactorisedTransformer):
    """Predicts the velocity of latents; see `FactorisedTransformer` for the arguments.

    The first half of the output channels is the velocity x - n from noise to latents (the sign is the opposite of
    Wan's); the second half was trained as a variance and is not used by rectified flow.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 4,
        out_channels: int = 8,
        width: int = 1152,
        heads: int = 16,
        depth: int = 28,
        patch: tuple[int, int, int] = (1, 2, 2),
        mlp_ratio: float = 4.0,
        text_dim: int = 4096,
        text_length: int = 300,
    ) -> None:
        super().__init__(
            in_channels, out_channels, width, heads, depth, patch, mlp_ratio, text_dim, text_length, fps=True
        )

    def forward(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        *,
        text: torch.Tensor | None = None,
        text_mask: torch.Tensor | None = None,
        fps: torch.Tensor | float | None = None,
        image_size: tuple[int, int] | None = None,
        extra_tokens: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Predicts for latents of any size; those that do not fill the patches are padded with zeros.

        Args:
            x: (b, in_channels, f, h, w) latents.
            timestep: (b,) noise level times 1000; 1000 is pure noise.
            text: (b, M, text_dim) embeddings of a text; None = the learned embedding of no text.
            text_mask: (b, M) bool, True = a token of the text.
            fps: (b,) frames a second of the video, or one number for all; None = `FPS`.
            image_size: height and width in pixels; None = 8 a latent.
            extra_tokens: see `FactorisedTransformer.features`.

        Returns:
            (b, out_channels, f, h, w) float32.

        Raises:
            InputError: `x` has another shape.
        """
        if x.ndim != 5:
            raise InputError(f"The latents have shape {tuple(x.shape)}; (b, channels, f, h, w) was expected.")
        size = x.shape[2:]
        lacking = [-n % p for n, p in zip(size, self.x_embedder.patch, strict=True)]
        padded = functional.pad(x, [n for lack in reversed(lacking) for n in (0, lack)]) if any(lacking) else x
        rate = FPS if fps is None else fps
        rates = rate if isinstance(rate, torch.Tensor) else torch.full((len(x),), rate, device=x.device)
        out = super().forward(
            padded.to(self.x_embedder.proj.weight.dtype), timestep, text=text, text_mask=text_mask, fps=rates,
            image_size=image_size or (LATENT_PX * size[1], LATENT_PX * size[2]), extra_tokens=extra_tokens,
        )  # fmt: skip
        return out[:, :, : size[0], : size[1], : size[2]].float()

    def velocity(self, x: torch.Tensor, level: torch.Tensor, fps: torch.Tensor | float | None = None) -> torch.Tensor:
        """Velocity x - n, (b, out_channels / 2, f, h, w), of latents at noise levels (b,) in 0..1, without a text."""
        return self(x, level * 1000, fps=fps).chunk(2, dim=1)[0]


def config_of_shapes(shapes: Mapping[str, tuple[int, ...]], path: Path) -> dict[str, Any]:
    """Arguments of `STDiT3` that follow from the shapes of its weights.

    Args:
        shapes: shapes by published name.
        path: the file, for messages.

    Raises:
        CheckpointError: a tensor that tells a size is missing or has another number of axes.
    """

    def shape(name: str, axes: int) -> tuple[int, ...]:
        found = shapes.get(name)
        if found is None or len(found) != axes or not all(found):
            what = "is missing" if found is None else f"has the shape {found}"
            raise CheckpointError(f"{path} is no STDiT3 of Open-Sora 1.2: {name} {what}.")
        return found

    patches = shape(INPUT_WEIGHT, 5)
    head_dim = shape("spatial_blocks.0.attn.q_norm.weight", 1)[0]
    text_length, text_dim = shape("y_embedder.y_embedding", 2)
    width, outputs = patches[0], shape("final_layer.linear.weight", 2)[0]
    cell = math.prod(patches[2:])
    numbers = {int(m[1]) for name in shapes if (m := re.match(r"spatial_blocks\.(\d{1,4})\.", name))}
    depth = max(numbers) + 1
    if width % head_dim or outputs % (2 * cell) or depth > MAX_LAYERS:
        raise CheckpointError(
            f"{path} has a width of {width} with heads of {head_dim} channels, {outputs} outputs a patch of {cell} "
            f"latents, and {depth} blocks; these sizes do not fit each other."
        )
    return {
        "in_channels": patches[1],
        "out_channels": outputs // cell,
        "width": width,
        "heads": width // head_dim,
        "depth": depth,
        "patch": tuple(patches[2:]),
        "mlp_ratio": shape("spatial_blocks.0.mlp.fc1.weight", 2)[0] / width,
        "text_dim": text_dim,
        "text_length": text_length,
    }


def load_stdit3(
    path: Path,
    *,
    widened: bool = False,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> STDiT3:
    """Loads published or fine-tuned weights, in evaluation mode, without gradients.

    Args:
        path: a folder with `model.safetensors`, `diffusion_pytorch_model.safetensors` or shards of one, or a file
            (`.safetensors`; `.bin`, `.pth`, `.pt` or `.ckpt` with tensors alone).
        widened: input channels are doubled with weights of 0 where the file has as many as the velocity.
        device: device to load it to.
        dtype: dtype of the weights.

    Raises:
        CheckpointError: a file is missing or damaged, a tensor is missing, unknown, of a wrong shape or not finite, or
            the device has too little memory.
    """
    files = open_published(path)
    shapes = files.shapes()
    config = config_of_shapes(shapes, path)
    content = _read_config(path if path.is_dir() else path.parent)
    if widened and config["in_channels"] == config["out_channels"] // 2:
        config["in_channels"] *= 2
    model = build_on_meta(STDiT3, path, config, "STDiT3")
    if WORK_PIXELS in content:
        model.register_to_config(**{WORK_PIXELS: int(content[WORK_PIXELS])})
    computed = [name for name in COMPUTED if name in shapes]
    for name, tensor in files.read([name for name in computed if name == ROTARY_FREQUENCIES]):
        head_dim = config["width"] // config["heads"]
        expected = 10_000.0 ** -(torch.arange(0, head_dim, 2) / head_dim)
        if tensor.shape != expected.shape or not torch.allclose(tensor.float(), expected, rtol=0.01):
            raise CheckpointError(f"{path}: {name} are not the frequencies of Open-Sora 1.2 (base 10000).")
    if computed:
        logger.info("Skipped %s in %s: computed here.", " and ".join(computed), path)
    assign(model, files, torch.device(device), dtype, skipped=computed, widened={INPUT_WEIGHT: 1} if widened else {})
    return model.requires_grad_(False).eval()


def _read_config(folder: Path) -> dict[str, Any]:
    """Checks what shapes do not tell, where a `config.json` says it."""
    file = folder / "config.json"
    if not file.is_file():
        return {}
    content = read_json(file)
    kind = content.get("_class_name", content.get("model_type"))
    if kind not in (None, "STDiT3"):
        raise CheckpointError(f"{file} describes a {kind!s:.60}; an STDiT3 was expected.")
    for key, expected in (("input_sq_size", BASE_SIDE), ("qk_norm", True), ("skip_y_embedder", False)):
        if content.get(key, expected) != expected:
            raise CheckpointError(f"{file}: {key} is {content[key]!r:.40}; {expected} was expected.")
    if WORK_PIXELS in content:
        check_integer(file, content, WORK_PIXELS, 256, MAX_NUMBER)
    return content
