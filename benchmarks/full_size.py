"""Sizes, weights, inputs, operations and switches of `bench_full_size.py`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from worldstereo_ros.models.autoencoders.keyframe import KeyframeAutoencoder
from worldstereo_ros.models.checkpoints.parameters import parameter_dtype, set_parameter
from worldstereo_ros.models.worldstereo.transformer import WorldStereoTransformer

TEXT_TOKENS, IMAGE_TOKENS = 512, 257
FP8_MAX = 448.0  # largest value of float8_e4m3fn


@dataclass(frozen=True)
class Size:
    """A model and clip size: arguments of the transformer and of the autoencoder, frames, height and width."""

    name: str
    backbone: dict[str, Any]
    control: dict[str, Any]
    autoencoder: dict[str, Any]
    frames: int
    height: int
    width: int


def _control(dim: int, layers: int, heads: int, width: int, mid: int) -> dict[str, Any]:
    return {
        "conv_out_dim": width,
        "dim": dim,
        "ffn_dim": 4 * dim,
        "num_heads": heads,
        "num_layers": layers,
        "time_embed_dim": width,
        "add_channels": 7,
        "mid_channels": mid,
        "mask_downsample": 1,
        "update_ref": True,
        "main_camera_embedding": True,
    }


# The size of the published models on Wan 2.1's 14B image-to-video transformer.
FULL = Size(
    "full",
    {"image_dim": 1280, "added_kv_proj_dim": 5120},
    _control(1024, 20, 16, 5120, 64),
    {},
    21,
    480,
    768,
)
TOY = Size(
    "toy",
    {
        "num_attention_heads": 2,
        "attention_head_dim": 24,
        "text_dim": 32,
        "freq_dim": 32,
        "ffn_dim": 128,
        "num_layers": 3,
        "image_dim": 16,
        "added_kv_proj_dim": 48,
    },
    _control(32, 2, 2, 48, 32),
    {"base_dim": 8, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 1},
    5,
    64,
    96,
)


def build(
    size: Size, device: torch.device, dtype: torch.dtype, seed: int = 0
) -> tuple[WorldStereoTransformer, KeyframeAutoencoder]:
    """Builds both models with random weights, directly on the device."""
    generator = torch.Generator(device).manual_seed(seed)
    with torch.device("meta"):
        transformer = WorldStereoTransformer(**size.backbone, controlnet_cfg=size.control).eval()
        autoencoder = KeyframeAutoencoder(**size.autoencoder).eval()
    for model in (transformer, autoencoder):
        for name, parameter in list(model.named_parameters()):
            kind = parameter_dtype(name, dtype) if model is transformer else dtype
            tensor = torch.empty(parameter.shape, dtype=kind, device=device)
            norm = parameter.ndim == 1 and name.endswith("weight")
            tensor.normal_(1.0 if norm or name.endswith("gamma") else 0.0, 0.02, generator=generator)
            set_parameter(model, name, tensor, kind)
    return transformer.requires_grad_(False), autoencoder.requires_grad_(False)


def make_inputs(
    model: WorldStereoTransformer,
    frames: int,
    height: int,
    width: int,
    references: int,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, torch.Tensor]:
    """Random inputs of the transformer's forward; half of every image is a hole."""
    h, w = height // 8, width // 8

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    mask = torch.zeros(1, 1, frames, height, width, device=device, dtype=dtype)
    mask[:, :, 1:, :, width // 2 :] = 1
    inputs = {
        "hidden_states": noise(1, model.config.in_channels, frames, h, w),
        "timestep": torch.full((1,), 500.0, device=device),
        "encoder_hidden_states": noise(1, TEXT_TOKENS, model.config.text_dim),
        "encoder_hidden_states_image": noise(1, IMAGE_TOKENS, model.config.image_dim),
        "render_latent": noise(1, 16, frames, h, w),
        "render_mask": mask,
        "camera_embedding": noise(1, 6, frames, height, width),
        "camera_qt": noise(1, frames, 7),
    }
    if references:
        inputs["reference_latent"] = noise(1, model.config.in_channels, references, h, w)
        inputs["ref_index"] = torch.linspace(0, frames - 2, references).long()  # read as Python numbers, so on the CPU
        inputs["camera_qt_ref"] = noise(1, references, 7)
    return inputs


def build_peer(model: WorldStereoTransformer) -> nn.Module:
    """Diffusers' `WanTransformer3DModel` with the weights of a transformer without branches; it shares their memory."""
    from inspect import signature

    from diffusers import WanTransformer3DModel
    from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed

    known = set(signature(WanTransformer3DModel.__init__).parameters) - {"self"}
    config = {key: value for key, value in model.config.items() if key in known}
    with torch.device("meta"):
        peer = WanTransformer3DModel(**config).eval()
    peer.load_state_dict(dict(model.named_parameters()), assign=True)
    device = next(model.parameters()).device
    # Its angles are no weights, and were made on the meta device, too.
    peer.rope = WanRotaryPosEmbed(config["attention_head_dim"], config["patch_size"], config["rope_max_seq_len"])
    peer.rope.to(device)
    return peer.requires_grad_(False)


def count_flops(
    config: Any,
    frames: int,
    height: int,
    width: int,
    references: int,
    *,
    text_tokens: int = TEXT_TOKENS,
    image_tokens: int = IMAGE_TOKENS,
) -> dict[str, int]:
    """Floating-point operations of one forward of the transformer, by part: two for each multiplication of a matrix
    product, a convolution or an attention; element-wise operations are not counted.

    Args:
        config: of the transformer; attention over references is `full`.
        frames, height, width: the clip in pixels.
        references: number of references.
        text_tokens, image_tokens: of the prompt and of the start view; 0 image tokens: no image embedding.
    """
    heads, head = config.num_attention_heads, config.attention_head_dim
    dim, ffn, layers = heads * head, config.ffn_dim, config.num_layers
    patch = math.prod(config.patch_size)
    per_frame = (height // 8 // config.patch_size[1]) * (width // 8 // config.patch_size[2])
    targets, reference_tokens = frames * per_frame, references * per_frame
    control = config.controlnet_cfg or {}
    tokens = targets + reference_tokens
    queries = tokens if control.get("update_ref") else targets

    embed = tokens * dim * config.in_channels * patch + targets * dim * config.out_channels * patch
    embed += config.freq_dim * dim + dim * dim + dim * 6 * dim + text_tokens * (config.text_dim * dim + dim * dim)
    if config.image_dim:
        embed += image_tokens * (config.image_dim**2 + config.image_dim * dim)
    if control.get("main_camera_embedding"):
        poses = control.get("camera_embedding_dim", 7)
        embed += (frames + references) * (poses * (dim // 2) + (dim // 2) * dim + dim * dim)

    keys = text_tokens + (image_tokens if config.added_kv_proj_dim else 0)
    flops = {
        "embedding": embed,
        "self-attention linear": layers * 2 * (queries + tokens) * dim * dim,
        "self-attention": layers * 2 * queries * tokens * dim,
        "cross-attention linear": layers * (2 * targets + 2 * keys) * dim * dim,
        "cross-attention": layers * 2 * targets * keys * dim,
        "feed-forward": layers * 2 * queries * dim * ffn,
    }
    if control:
        inner, width_in, blocks = control["dim"], control["conv_out_dim"], control["num_layers"]
        mid = control.get("mid_channels", 64)
        pixels = frames * (height // 8) * (width // 8)
        stride = control.get("mask_downsample", 4)
        part = targets * width_in * config.in_channels * patch
        part += pixels * mid * control.get("add_channels", 1) * stride * 64 + targets * width_in * mid * 4
        part += targets * width_in * inner if width_in != inner else 0
        linear = 4 * inner * inner + 2 * inner * control["ffn_dim"] + inner * dim
        modulation = 2 * control["time_embed_dim"] * 3 * inner
        flops["control linear"] = part + blocks * (targets * linear + modulation)
        flops["control attention"] = blocks * 2 * targets * targets * inner
    return {name: 2 * count for name, count in flops.items()}


# --- switches ---


class Float8Linear(nn.Module):
    """A linear layer with a float8 product: one scale for each row of the weight, and one for each token, dynamic."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / FP8_MAX
        self.register_buffer("weight8", (weight / scale).to(torch.float8_e4m3fn))
        self.register_buffer("scale", scale.t().contiguous())
        self.bias = linear.bias
        self.out_features = linear.out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out) in the dtype of x; the product is bfloat16."""
        rows = x.reshape(-1, x.shape[-1])
        scale = (rows.abs().amax(1, keepdim=True).float() / FP8_MAX).clamp(min=1e-12)
        rows8 = (rows.float() / scale).to(torch.float8_e4m3fn)
        out = torch._scaled_mm(
            rows8, self.weight8.t(), scale_a=scale, scale_b=self.scale, out_dtype=torch.bfloat16, use_fast_accum=True
        )
        out = out if self.bias is None else out + self.bias.to(out.dtype)
        return out.to(x.dtype).reshape(*x.shape[:-1], self.out_features)


def use_float8(model: nn.Module, how: str) -> int:
    """Replaces the linear layers inside the blocks by float8 ones; returns how many.

    Args:
        model: a transformer.
        how: `scaled_mm` (ours) or `torchao`.

    Raises:
        RuntimeError: torchao is not installed.
    """
    layers = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and (name.startswith("blocks.") or "controlnet_blocks." in name)
        and "norm" not in name
        and module.in_features % 16 == 0
        and module.out_features % 16 == 0
    ]
    if how == "torchao":
        try:
            from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quantize_
        except ImportError:
            raise RuntimeError("torchao is not installed; run pip install torchao, or use scaled_mm.") from None
        names = {name for name, _ in layers}
        config = Float8DynamicActivationFloat8WeightConfig(granularity=PerRow())
        quantize_(model, config, filter_fn=lambda module, name: name in names)
        return len(layers)
    for name, module in layers:
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, Float8Linear(module))
    return len(layers)


def fuse_projections(model: WorldStereoTransformer) -> None:
    """Fuses the query, key and value projections and frees the separate weights."""
    model.fuse_qkv_projections()
    for module in model.modules():
        if getattr(module, "fused_projections", False):
            unused = ("to_k", "to_v", "add_k_proj", "add_v_proj")
            for name in unused if module.is_cross_attention else (*unused, "to_q"):
                if isinstance(getattr(module, name, None), nn.Linear):
                    # The processor checks that an added projection exists, then uses the fused one.
                    setattr(module, name, nn.Identity())


class Graphed:
    """A forward pass as a CUDA graph, without launch overhead. Inputs are copied into its buffers."""

    def __init__(self, model: nn.Module, inputs: dict[str, torch.Tensor]) -> None:
        self.inputs = {name: tensor.clone() for name, tensor in inputs.items()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            model(**self.inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.sample = model(**self.inputs).sample

    def __call__(self, **inputs: torch.Tensor) -> torch.Tensor:
        """The velocity; the next call overwrites it."""
        for name, tensor in inputs.items():
            if tensor.is_cuda and tensor.data_ptr() != self.inputs[name].data_ptr():
                self.inputs[name].copy_(tensor)
        self.graph.replay()
        return self.sample


def matmul_rate(device: torch.device, dtype: torch.dtype, side: int, seconds: float) -> float:
    """The best measured rate of a square matrix product, operations per second."""
    import time

    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best, spent = math.inf, 0.0
    while spent < seconds:
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(10):
            functional.linear(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize()
        elapsed = time.perf_counter() - start
        best, spent = min(best, elapsed / 10), spent + elapsed
    return 2 * side**3 / best
