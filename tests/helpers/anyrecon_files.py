"""A tiny AnyRecon model in the layout of its published files: Wan's own names, pickles, and a LoRA."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from helpers.checkpoints import tiny_transformer, tiny_wan_autoencoder
from worldstereo_ros.models.checkpoints.wan_layout import autoencoder_name, transformer_name

WIDTH, TEXT_DIM, IMAGE_DIM, LAYERS = 48, 24, 32, 2  # the image encoder has 16 heads
SIZE = (48, 64)


def original_names(state: dict, rename, candidates) -> dict:
    """Renames a state dict to the original layout; `candidates` are names there."""
    table = {rename(name): name for name in candidates}
    return {table[name]: tensor for name, tensor in state.items()}


def wan_transformer_names() -> list[str]:
    """All names of the original transformer with two blocks."""
    attention = [f"{n}.{leaf}" for n in ("q", "k", "v", "o") for leaf in ("weight", "bias")]
    attention += ["norm_q.weight", "norm_k.weight"]
    image = [f"{n}.{leaf}" for n in ("k_img", "v_img") for leaf in ("weight", "bias")] + ["norm_k_img.weight"]
    block = ["modulation", *(f"self_attn.{n}" for n in attention), *(f"cross_attn.{n}" for n in attention + image)]
    block += [f"{n}.{leaf}" for n in ("norm3", "ffn.0", "ffn.2") for leaf in ("weight", "bias")]
    modules = ("patch_embedding", "text_embedding.0", "text_embedding.2", "time_embedding.0", "time_embedding.2")
    modules += ("time_projection.1", *(f"img_emb.proj.{i}" for i in (0, 1, 3, 4)), "head.head")
    names = [f"{module}.{leaf}" for module in modules for leaf in ("weight", "bias")]
    return [*names, "head.modulation", *(f"blocks.{i}.{n}" for i in range(LAYERS) for n in block)]


def wan_autoencoder_names() -> list[str]:
    """Names of the original autoencoder with one residual block at each resolution, and some that it does not have."""
    residual = [f"residual.{i}.{leaf}" for i in (0, 2, 3, 6) for leaf in ("weight", "bias", "gamma")]
    leaves = ("weight", "bias")
    layer = [*residual, *(f"{n}.{leaf}" for n in ("shortcut", "resample.1", "time_conv") for leaf in leaves)]
    attention = ["norm.gamma", *(f"{n}.{leaf}" for n in ("to_qkv", "proj") for leaf in leaves)]
    names = [f"{n}.{leaf}" for n in ("conv1", "conv2") for leaf in leaves]
    for coder, part in (("encoder", "downsamples"), ("decoder", "upsamples")):
        names += [f"{coder}.conv1.{leaf}" for leaf in leaves]
        names += [f"{coder}.{part}.{i}.{n}" for i in range(12) for n in layer]
        names += [f"{coder}.middle.{i}.{n}" for i in (0, 2) for n in residual]
        names += [f"{coder}.middle.1.{n}" for n in attention]
        names += [f"{coder}.head.0.gamma", *(f"{coder}.head.2.{leaf}" for leaf in leaves)]
    return names


def write_anyrecon(folder: Path, *, lora: str = "full_attention.ckpt", seed: int = 0, shards: int = 2) -> Path:
    """Writes all files to one folder, and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    changes = {"image_dim": IMAGE_DIM, "added_kv_proj_dim": WIDTH, "text_dim": TEXT_DIM, "num_layers": LAYERS}
    model = tiny_transformer(seed, None, **changes)
    state = original_names(model.state_dict(), transformer_name, wan_transformer_names())
    names = sorted(state)
    for index in range(shards):
        part = {name: state[name].contiguous() for name in names[index::shards]}
        save_file(part, folder / f"diffusion_pytorch_model-{index + 1:05d}-of-{shards:05d}.safetensors")
    (folder / "config.json").write_text(json.dumps({"dim": WIDTH, "num_heads": 2, "num_layers": LAYERS, "eps": 1e-6}))
    autoencoder = tiny_wan_autoencoder(seed).state_dict()
    table = {new: n for n in wan_autoencoder_names() if (new := autoencoder_name(n, 1)) in autoencoder}
    torch.save({table[name]: tensor for name, tensor in autoencoder.items()}, folder / "Wan2.1_VAE.pth")
    torch.save(text_encoder(seed), folder / "models_t5_umt5-xxl-enc-bf16.pth")
    torch.save(clip(seed), folder / "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth")
    if lora:
        torch.save(lora_factors(state, seed), folder / lora)
    return folder


def lora_factors(state: dict, seed: int = 0, rank: int = 2) -> dict:
    """A LoRA for the modules that the published one changes."""
    generator = torch.Generator().manual_seed(seed)
    out = {}
    for name, tensor in state.items():
        if name.endswith((".q.weight", ".k.weight", ".v.weight", ".o.weight", ".ffn.0.weight", ".ffn.2.weight")):
            module = name.removesuffix(".weight")
            rows, columns = tensor.shape
            out[f"{module}.lora_A.default.weight"] = 0.1 * torch.randn(rank, columns, generator=generator)
            out[f"{module}.lora_B.default.weight"] = 0.1 * torch.randn(rows, rank, generator=generator)
    return out


def text_encoder(seed: int = 0, layers: int = 2, inner: int = 16, hidden: int = 32) -> dict:
    """A tiny UMT5 encoder with Wan's names; in float32, which the published bfloat16 file is not."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return 0.3 * torch.randn(shape, generator=generator)

    out = {"token_embedding.weight": noise(7, TEXT_DIM), "norm.weight": 1 + noise(TEXT_DIM)}
    for layer in range(layers):
        name = f"blocks.{layer}"
        out |= {f"{name}.attn.{n}.weight": noise(inner, TEXT_DIM) for n in "qkv"}
        out |= {f"{name}.attn.o.weight": noise(TEXT_DIM, inner), f"{name}.ffn.fc2.weight": noise(TEXT_DIM, hidden)}
        out |= {f"{name}.{n}.weight": noise(hidden, TEXT_DIM) for n in ("ffn.gate.0", "ffn.fc1")}
        out |= {f"{name}.{n}.weight": 1 + noise(TEXT_DIM) for n in ("norm1", "norm2")}
        out[f"{name}.pos_embedding.embedding.weight"] = noise(32, 2)
    return out


def clip(seed: int = 0, layers: int = 3, hidden: int = 48, patch: int = 56) -> dict:
    """A tiny CLIP with Wan's names, and a tensor of its text encoder."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return 0.2 * torch.randn(shape, generator=generator)

    out = {
        "visual.patch_embedding.weight": noise(IMAGE_DIM, 3, patch, patch) / 50,
        "visual.cls_embedding": noise(1, 1, IMAGE_DIM),
        "visual.pos_embedding": noise(1, 1 + (224 // patch) ** 2, IMAGE_DIM),
        "visual.head": noise(IMAGE_DIM, 8),
        "textual.norm.weight": noise(8),
        "log_scale": noise(1)[0],
    }
    shapes = {"visual.pre_norm": (IMAGE_DIM,), "visual.post_norm": (IMAGE_DIM,)}
    for layer in range(layers):
        name = f"visual.transformer.{layer}"
        shapes |= {f"{name}.norm1": (IMAGE_DIM,), f"{name}.norm2": (IMAGE_DIM,)}
        shapes |= {f"{name}.attn.to_qkv": (3 * IMAGE_DIM, IMAGE_DIM), f"{name}.attn.proj": (IMAGE_DIM, IMAGE_DIM)}
        shapes |= {f"{name}.mlp.0": (hidden, IMAGE_DIM), f"{name}.mlp.2": (IMAGE_DIM, hidden)}
    for name, shape in shapes.items():
        out[f"{name}.weight"] = noise(*shape) + (1 if len(shape) == 1 else 0)
        out[f"{name}.bias"] = noise(shape[0])
    return out
