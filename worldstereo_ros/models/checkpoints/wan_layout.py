"""The layout of Wan 2.1's own files: names of tensors as in its repository, not those of diffusers.

AnyRecon, FixAnything and most LoRA files for Wan are published in this layout. Each name of the original has exactly
one name in diffusers' layout, that of this package's networks; a name that is not in the tables below is an error.
Sizes follow from the shapes of the tensors. The number of attention heads does not; it is in `config.json`, and 128
channels a head are assumed without one.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKLWan

from worldstereo_ros.models.checkpoints.bounds import MAX_LAYERS, check_integer, check_number, check_numbers
from worldstereo_ros.models.checkpoints.weights import CheckpointError, read_json

Shapes = Mapping[str, tuple[int, ...]]

HEAD_DIM = 128  # of all published Wan models
PATCH = (1, 2, 2)

_TRANSFORMER = {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
    "head.head": "proj_out",
}
_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "norm_q": "norm_q", "norm_k": "norm_k"}
_IMAGE_ATTENTION = {"k_img": "add_k_proj", "v_img": "add_v_proj", "norm_k_img": "norm_added_k"}
_BLOCK = {
    **{f"self_attn.{old}": f"attn1.{new}" for old, new in _ATTENTION.items()},
    **{f"cross_attn.{old}": f"attn2.{new}" for old, new in {**_ATTENTION, **_IMAGE_ATTENTION}.items()},
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}
_BLOCK_NAME = re.compile(r"blocks\.(\d{1,4})\.(.+)")

_RESIDUAL = {"residual.0": "norm1", "residual.2": "conv1", "residual.3": "norm2", "residual.6": "conv2"}
_LAYER = {**_RESIDUAL, "shortcut": "conv_shortcut", "resample.1": "resample.1", "time_conv": "time_conv"}
_CODER_NAME = re.compile(r"(encoder|decoder)\.(downsamples|upsamples|middle)\.(\d{1,3})\.(.+)")


def transformer_name(name: str) -> str | None:
    """Returns the name in diffusers' layout of a tensor of the original transformer; None: there is no such tensor.

    Args:
        name: `blocks.0.self_attn.q.weight` and so on.
    """
    if name == "head.modulation":
        return "scale_shift_table"
    prefix, table = "", _TRANSFORMER
    if match := _BLOCK_NAME.fullmatch(name):
        prefix, name, table = f"blocks.{int(match[1])}.", match[2], _BLOCK
        if name == "modulation":
            return f"{prefix}scale_shift_table"
    module, _, leaf = name.rpartition(".")
    if module not in table or leaf not in ("weight", "bias"):
        return None
    return f"{prefix}{table[module]}.{leaf}"


def transformer_config(shapes: Shapes, folder: Path, config_file: Path | None = None) -> dict[str, Any]:
    """The arguments of `WorldStereoTransformer` for a transformer in the original layout.

    Args:
        shapes: shapes of its tensors by their original name.
        folder: where they are, for messages.
        config_file: Wan's `config.json`, where there is one. Its numbers must be those of the tensors.

    Raises:
        CheckpointError: a tensor that gives a size is missing, or the file contradicts the tensors.
    """

    def shape(name: str, axes: int) -> tuple[int, ...]:
        if name not in shapes:
            raise CheckpointError(f"{folder} lacks {name}; the transformer of Wan in its original layout was expected.")
        if len(shapes[name]) != axes:
            raise CheckpointError(f"{folder}: {name} has shape {shapes[name]}; {axes} axes were expected.")
        return shapes[name]

    width, in_channels, *patch = shape("patch_embedding.weight", 5)
    layers = 1 + max((int(m[1]) for name in shapes if (m := _BLOCK_NAME.fullmatch(name))), default=-1)
    stated = {} if config_file is None else read_json(config_file)
    if config_file is not None:
        check_numbers(config_file, stated)
    out_features = shape("head.head.weight", 2)[0]
    found = {
        "dim": width,
        "num_layers": layers,
        "ffn_dim": shape("blocks.0.ffn.0.weight", 2)[0],
        "text_dim": shape("text_embedding.0.weight", 2)[1],
        "freq_dim": shape("time_embedding.0.weight", 2)[1],
        "in_dim": in_channels,
        "out_dim": out_features // max(1, patch[0] * patch[1] * patch[2]),
        "patch_size": list(patch),
    }
    for key, value in found.items():
        if key in stated and stated[key] != value:
            raise CheckpointError(
                f"{config_file}: {key} is {stated[key]!r:.60} and the tensors in {folder} have {value}; use the files "
                "of one model."
            )
    if not 1 <= layers <= MAX_LAYERS:
        raise CheckpointError(f"{folder} has {layers} blocks; 1 to {MAX_LAYERS} were expected.")
    if config_file is not None and "num_heads" in stated:
        heads = check_integer(config_file, stated, "num_heads", 1, MAX_LAYERS)
    elif width % HEAD_DIM == 0:
        heads = width // HEAD_DIM
    else:
        raise CheckpointError(
            f"{folder} has width {width}, which is no multiple of {HEAD_DIM}, the channels of a head of the published "
            'models; put a config.json with "num_heads" beside the weights.'
        )
    if width % heads or (width // heads) % 2:
        raise CheckpointError(f"{folder} has width {width} and {heads} heads; heads of an even width were expected.")
    image_dim = shape("img_emb.proj.0.weight", 1)[0] if "img_emb.proj.0.weight" in shapes else None
    eps = check_number(config_file, stated, "eps", 1e-12, 1e-2) if config_file and "eps" in stated else 1e-6
    return {
        "patch_size": tuple(patch),
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "in_channels": in_channels,
        "out_channels": found["out_dim"],
        "text_dim": found["text_dim"],
        "freq_dim": found["freq_dim"],
        "ffn_dim": found["ffn_dim"],
        "num_layers": layers,
        "eps": eps,
        "image_dim": image_dim,
        "added_kv_proj_dim": None if image_dim is None else width,
    }


def autoencoder_name(name: str, blocks: int) -> str | None:
    """Returns the name in diffusers' layout of a tensor of `Wan2.1_VAE.pth`; None: there is no such tensor.

    Args:
        name: `encoder.downsamples.0.residual.2.weight` and so on.
        blocks: residual blocks of the encoder at each resolution; the decoder has one more.
    """
    module, _, leaf = name.rpartition(".")
    heads = {f"{coder}.head.{i}": f"{coder}.{to}" for coder in ("encoder", "decoder") for i, to in _HEADS}
    ends = {"conv1": "quant_conv", "conv2": "post_quant_conv", **heads}
    ends |= {f"{coder}.conv1": f"{coder}.conv_in" for coder in ("encoder", "decoder")}
    if module in ends:
        return f"{ends[module]}.{leaf}"
    match = _CODER_NAME.fullmatch(name)
    if match is None:
        return None
    coder, part, index, rest = match[1], match[2], int(match[3]), match[4]
    layer, _, leaf = rest.rpartition(".")
    if part == "middle":
        if index == 1:
            return f"{coder}.mid_block.attentions.0.{rest}" if layer in ("norm", "to_qkv", "proj") else None
        known = layer in _RESIDUAL and index in (0, 2)
        return f"{coder}.mid_block.resnets.{index // 2}.{_RESIDUAL[layer]}.{leaf}" if known else None
    if layer not in _LAYER or (coder == "encoder") != (part == "downsamples"):
        return None
    if coder == "encoder":
        return f"encoder.down_blocks.{index}.{_LAYER[layer]}.{leaf}"
    level, layer_index = divmod(index, blocks + 2)
    place = "upsamplers.0" if layer_index == blocks + 1 else f"resnets.{layer_index}"
    return f"decoder.up_blocks.{level}.{place}.{_LAYER[layer]}.{leaf}"


_HEADS = ((0, "norm_out"), (2, "conv_out"))


def autoencoder_config(shapes: Shapes, file: Path) -> dict[str, Any]:
    """The arguments of `KeyframeAutoencoder` for an autoencoder in the original layout.

    Args:
        shapes: shapes of its tensors by their original name.
        file: where they are, for messages.

    Returns:
        The arguments; the latent statistics are those that Wan published.

    Raises:
        CheckpointError: a tensor that gives a size is missing, or the sizes are not those of a Wan 2.1 autoencoder.
    """
    needed = ("encoder.conv1.weight", "decoder.conv1.weight", "conv2.weight", "encoder.downsamples.0.residual.2.weight")
    missing = [name for name in needed if name not in shapes or len(shapes[name]) < 2]
    if missing:
        raise CheckpointError(f"{file} lacks {missing[0]}; the autoencoder of Wan 2.1 (Wan2.1_VAE.pth) was expected.")
    layers = 1 + max(
        (int(m[3]) for name in shapes if (m := _CODER_NAME.fullmatch(name)) and m[2] == "downsamples"), default=0
    )
    blocks, remainder = divmod(layers - 3, 4)  # four resolutions, with a downsampling layer after all but the last
    z_dim, base = shapes["conv2.weight"][0], shapes["encoder.conv1.weight"][0]
    if remainder or blocks < 1:
        raise CheckpointError(f"{file} has {layers} layers in its encoder; four resolutions (4 n + 3) were expected.")
    if z_dim != 16:
        raise CheckpointError(f"{file} has {z_dim} latent channels; 16, those of Wan 2.1, were expected.")
    multiples = []
    for level in range(4):
        name = f"encoder.downsamples.{level * (blocks + 1)}.residual.2.weight"
        width = shapes.get(name, (0,))[0]
        if width <= 0 or width % base:
            raise CheckpointError(f"{file}: {name} has {width} channels; a multiple of {base} was expected.")
        multiples.append(width // base)
    decoder_base, remainder = divmod(shapes["decoder.conv1.weight"][0], multiples[-1])
    if remainder:
        raise CheckpointError(f"{file} has an encoder and a decoder whose widths do not fit each other.")
    published = inspect.signature(AutoencoderKLWan.__init__).parameters
    return {
        "base_dim": base,
        "decoder_base_dim": decoder_base,
        "z_dim": z_dim,
        "dim_mult": tuple(multiples),
        "num_res_blocks": blocks,
        "latents_mean": tuple(published["latents_mean"].default),
        "latents_std": tuple(published["latents_std"].default),
    }
