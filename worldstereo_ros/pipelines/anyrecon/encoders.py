"""Image and text conditioning of AnyRecon, from Wan 2.1's own files.

Only one prompt exists: AnyRecon was trained with a blank one, which is a single end token. Attention over one token
returns its value, so that the whole encoder comes down to a few products a layer, and its 11 GB are read once, layer by
layer, and never loaded as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch.nn import functional

from worldstereo_ros.models.checkpoints.bounds import MAX_LAYERS
from worldstereo_ros.models.checkpoints.parameters import check_finite, check_memory
from worldstereo_ros.models.checkpoints.tensor_files import TensorFiles, open_tensors
from worldstereo_ros.models.checkpoints.weights import CheckpointError, count_tensors, format_names

NUM_TEXT_TOKENS = 512
END_TOKEN = 1  # of UMT5's vocabulary
NORM_EPS = 1e-6  # of UMT5
CLIP_SIZE_PX, CLIP_HEADS, CLIP_NORM_EPS = 224, 16, 1e-5
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# Queries, keys and positions of the text encoder make no difference to a single token.
_TEXT_USED = (
    "norm1.weight", "attn.v.weight", "attn.o.weight", "norm2.weight", "ffn.gate.0.weight", "ffn.fc1.weight",
    "ffn.fc2.weight",
)  # fmt: skip
_TEXT_BLOCK = (*_TEXT_USED, "attn.q.weight", "attn.k.weight", "pos_embedding.embedding.weight")
_TEXT_NAME = re.compile(r"blocks\.(\d{1,3})\.(.+)")
_CLIP_NAME = re.compile(r"visual\.transformer\.(\d{1,3})\.(.+)\.(weight|bias)")
_CLIP_UNUSED = ("textual.", "visual.post_norm.", "visual.head", "log_scale")  # what image tokens do not depend on


@torch.no_grad()
def blank_text(file: Path, text_dim: int) -> torch.Tensor:
    """Encodes the blank prompt with Wan's UMT5 encoder.

    Args:
        file: `models_t5_umt5-xxl-enc-bf16.pth`, or the same tensors as safetensors.
        text_dim: width that the transformer expects.

    Returns:
        (1, 512, text_dim) float32: the end token in the first row, 0 in the others.

    Raises:
        CheckpointError: the file is missing or damaged, or its tensors are not exactly those of the encoder.
    """
    tensors = open_tensors(file, file.stem)
    layers = _check_text(tensors, file, text_dim)
    wanted = ["token_embedding.weight", "norm.weight"]

    def read(name: str) -> torch.Tensor:
        (_, tensor), *_ = tensors.read([name])
        row = tensor[END_TOKEN] if name == wanted[0] else tensor
        return check_finite(row.float(), name, tensors.tensors[name])

    x = read(wanted[0])
    for layer in range(layers):
        weights = {name: read(f"blocks.{layer}.{name}") for name in _TEXT_USED}
        normed = _rms_norm(x, weights["norm1.weight"])
        x = x + weights["attn.o.weight"] @ (weights["attn.v.weight"] @ normed)
        normed = _rms_norm(x, weights["norm2.weight"])
        gate = functional.gelu(weights["ffn.gate.0.weight"] @ normed, approximate="tanh")
        x = x + weights["ffn.fc2.weight"] @ (gate * (weights["ffn.fc1.weight"] @ normed))
    out = torch.zeros(1, NUM_TEXT_TOKENS, text_dim)
    out[0, 0] = _rms_norm(x, read(wanted[1]))
    return out


def _rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return weight * (x * torch.rsqrt(x.square().mean() + NORM_EPS))


def _check_text(tensors: TensorFiles, file: Path, text_dim: int) -> int:
    """Checks the names and shapes of the text encoder; returns the number of its layers."""
    shapes = tensors.shapes()
    layers = 1 + max((int(m[1]) for name in shapes if (m := _TEXT_NAME.fullmatch(name))), default=-1)
    expected = {"token_embedding.weight", "norm.weight"}
    expected |= {f"blocks.{layer}.{name}" for layer in range(min(layers, MAX_LAYERS)) for name in _TEXT_BLOCK}
    _check_names(set(shapes), expected, file, "UMT5 encoder of Wan")
    vocabulary, width = shapes["token_embedding.weight"]
    if width != text_dim or vocabulary <= END_TOKEN:
        raise CheckpointError(
            f"{file} has {vocabulary} tokens of width {width} and the transformer expects width {text_dim}; use the "
            "files of one base model."
        )
    for layer in range(layers):
        inner = shapes[f"blocks.{layer}.attn.v.weight"][:1]
        hidden = shapes[f"blocks.{layer}.ffn.fc1.weight"][:1]
        fits = {
            "norm1.weight": (width,), "norm2.weight": (width,), "attn.v.weight": (*inner, width),
            "attn.o.weight": (width, *inner), "ffn.gate.0.weight": (*hidden, width),
            "ffn.fc1.weight": (*hidden, width), "ffn.fc2.weight": (width, *hidden),
        }  # fmt: skip
        for name, shape in fits.items():
            if shapes[f"blocks.{layer}.{name}"] != shape:
                raise CheckpointError(
                    f"{file}: blocks.{layer}.{name} is {shapes[f'blocks.{layer}.{name}']} and should be {shape}."
                )
    return layers


class ClipEncoder:
    """Encodes an image to the tokens before the last layer of CLIP (a ViT with a norm before its layers).

    Args:
        weights: tensors of all layers but the last, by their name in Wan's file without `visual.`.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        self._weights = weights
        self._layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("transformer."))

    @torch.no_grad()
    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Maps an image (3, H, W) in [-1, 1] to (1, tokens, image_dim) float32."""
        weights = self._weights
        kernel = weights["patch_embedding.weight"]
        patches = functional.conv2d(clip_pixels(image).to(kernel), kernel, stride=kernel.shape[-1])
        tokens = torch.cat((weights["cls_embedding"], patches.flatten(2).transpose(1, 2)), dim=1)
        tokens = self._norm(tokens + weights["pos_embedding"], "pre_norm")
        for layer in range(self._layers):
            name = f"transformer.{layer}"
            qkv = self._linear(self._norm(tokens, f"{name}.norm1"), f"{name}.attn.to_qkv")
            q, k, v = qkv.unflatten(2, (3, CLIP_HEADS, -1)).permute(2, 0, 3, 1, 4)
            attended = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            tokens = tokens + self._linear(attended, f"{name}.attn.proj")
            hidden = functional.gelu(self._linear(self._norm(tokens, f"{name}.norm2"), f"{name}.mlp.0"))
            tokens = tokens + self._linear(hidden, f"{name}.mlp.2")
        return tokens

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.linear(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return functional.layer_norm(x, weight.shape, weight, bias, CLIP_NORM_EPS)


def clip_pixels(image: torch.Tensor) -> torch.Tensor:
    """Stretches an image to CLIP's size without antialiasing, and normalises it.

    Args:
        image: (3, H, W) in [-1, 1].

    Returns:
        (1, 3, 224, 224) float32.
    """
    size = (CLIP_SIZE_PX, CLIP_SIZE_PX)
    pixels = functional.interpolate(image[None].float(), size=size, mode="bicubic", align_corners=False)
    mean, std = (torch.tensor(n, device=pixels.device).view(1, 3, 1, 1) for n in (CLIP_MEAN, CLIP_STD))
    return (pixels * 0.5 + 0.5 - mean) / std


def load_clip(file: Path, image_dim: int, device: torch.device | str = "cpu") -> ClipEncoder:
    """Loads the vision encoder of Wan's CLIP file, in float32. The text encoder in the file is left out.

    Args:
        file: `models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth`, or the same tensors as safetensors.
        image_dim: width that the transformer expects.
        device: where it runs.

    Raises:
        CheckpointError: the file is missing or damaged, its tensors are not exactly those of the encoder, or there is
            too little memory.
    """
    tensors = open_tensors(file, file.stem)
    shapes = {n: s for n, s in tensors.shapes().items() if not n.startswith(_CLIP_UNUSED)}
    layers = 1 + max((int(m[1]) for name in shapes if (m := _CLIP_NAME.fullmatch(name))), default=-1)
    expected = _clip_shapes(shapes, min(layers, MAX_LAYERS), image_dim)
    _check_names(set(shapes), set(expected), file, "CLIP model of Wan")
    wrong = [
        f"{name} is {shapes[name]} and should be {shape}" for name, shape in expected.items() if shapes[name] != shape
    ]
    if wrong:
        raise CheckpointError(
            f"{file} does not fit a transformer with image features of width {image_dim}: {format_names(wrong)}; use "
            "the files of one base model."
        )
    if layers < 2 or image_dim % CLIP_HEADS:
        raise CheckpointError(f"{file} has {layers} layers of width {image_dim} for {CLIP_HEADS} heads.")
    used = [name for name in shapes if not name.startswith(f"visual.transformer.{layers - 1}.")]
    check_memory(4 * sum(tensors.tensors[name].num_elements for name in used), torch.device(device), file)
    weights = {}
    for name, tensor in tensors.read(used, device):
        check_finite(tensor, name, tensors.tensors[name])
        weights[name.removeprefix("visual.")] = tensor.to(torch.float32, copy=True)
    return ClipEncoder(weights)


def _clip_shapes(shapes: Mapping[str, tuple[int, ...]], layers: int, width: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the vision encoder's tensors; patch and hidden width are those of the file."""
    patch = (*shapes.get("visual.patch_embedding.weight", ()), 1)[-2]
    hidden = (*shapes.get("visual.transformer.0.mlp.0.weight", ()), 1)[0]
    expected = {
        "visual.patch_embedding.weight": (width, 3, patch, patch),
        "visual.cls_embedding": (1, 1, width),
        "visual.pos_embedding": (1, 1 + (CLIP_SIZE_PX // max(patch, 1)) ** 2, width),
    }
    modules: dict[str, tuple[int, ...]] = {"visual.pre_norm": (width,)}
    for layer in range(layers):
        name = f"visual.transformer.{layer}"
        modules |= {f"{name}.norm1": (width,), f"{name}.norm2": (width,), f"{name}.attn.to_qkv": (3 * width, width)}
        modules |= {f"{name}.attn.proj": (width, width), f"{name}.mlp.0": (hidden, width)}
        modules |= {f"{name}.mlp.2": (width, hidden)}
    for name, shape in modules.items():
        expected |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return expected


def _check_names(actual: set[str], expected: set[str], file: Path, what: str) -> None:
    """Raises CheckpointError unless the two are the same names."""
    missing, unknown = sorted(expected - actual), sorted(actual - expected)
    if missing or unknown:
        parts = [f"lacks {count_tensors(missing)} ({format_names(missing)})"] if missing else []
        parts += [f"has {count_tensors(unknown)} too many ({format_names(unknown)})"] if unknown else []
        raise CheckpointError(f"{file} is not the {what}: it {' and '.join(parts)}.")
