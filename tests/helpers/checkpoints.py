"""Tiny checkpoints in the published layout, with a tiny base model beside them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from worldstereo_ros.models.autoencoders.image import ImageAutoencoder
from worldstereo_ros.models.checkpoints.config import VARIANTS
from worldstereo_ros.models.checkpoints.hub import find_checkpoint
from worldstereo_ros.models.checkpoints.loading import BASE_STEM, load_transformer
from worldstereo_ros.models.checkpoints.saving import save_base, save_variant, save_weights, write_json
from worldstereo_ros.models.checkpoints.weights import CheckpointError
from worldstereo_ros.models.worldstereo.transformer import WorldStereoTransformer

TEXT_DIM, IMAGE_DIM, WIDTH = 24, 20, 48

BACKBONE = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "in_channels": 36,
    "out_channels": 16,
    "text_dim": TEXT_DIM,
    "freq_dim": 32,
    "ffn_dim": 96,
    "num_layers": 2,
    "image_dim": IMAGE_DIM,
    "added_kv_proj_dim": WIDTH,
}
CONTROL = {
    "conv_out_dim": WIDTH,
    "dim": 32,
    "ffn_dim": 64,
    "num_heads": 2,
    "num_layers": 1,
    "time_embed_dim": WIDTH,
    "add_channels": 7,
    "mid_channels": 32,
    "mask_downsample": 1,
    "update_ref": True,
    "main_camera_embedding": True,
    "camera_embedding_dim": 7,
    "ref_embedding": False,
}
CONFIG = {
    "base_model": "base",
    "nframe": 5,
    "scale_map": [[64, 96], [80, 80], [96, 64]],
    "latent_cond_mode": "full_vae",
    "negative_prompt": "blurred",
    "freeze_backbone": True,
}
DMD_VARIANT, MEMORY, CAMERA = "worldstereo-memory-dmd", "worldstereo-memory", "worldstereo-camera"
SMALL_TEXT_DIM, SMALL_WIDTH = 8, 32
SMALL_BACKBONE = {
    **BACKBONE,
    "attention_head_dim": 16,
    "text_dim": SMALL_TEXT_DIM,
    "ffn_dim": 64,
    "image_dim": None,
    "added_kv_proj_dim": None,
}
SMALL_CONTROL = {**CONTROL, "conv_out_dim": SMALL_WIDTH, "time_embed_dim": SMALL_WIDTH, "layout_channels": 20}
SMALL_CONFIG = {
    "base_model": "base",
    "nframe": 5,
    "scale_map": [[48, 64], [32, 64]],
    "latent_cond_mode": "first_frame_only",
    "text_encoder": "none",
    "guidance_scale": 1.0,
    "render_fill": "smooth",
}
DMD = {"dmd_start_steps": 250, "dmd_end_steps": 1000, "gen_shift": 5.0, "dmd_steps": 4}


def tiny_transformer(seed: int = 0, control: dict | None = CONTROL, **changes) -> WorldStereoTransformer:
    """Makes a transformer with random parameters, also those that are initialised with zero."""
    generator = torch.Generator().manual_seed(seed)
    model = WorldStereoTransformer(**{**BACKBONE, "controlnet_cfg": control, **changes}).eval()
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            mean = 1.0 if "norm" in name and name.endswith(".weight") and parameter.ndim == 1 else 0.0
            scale = 0.1 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
            parameter.copy_(mean + scale * torch.randn(parameter.shape, generator=generator))
    return model


def tiny_inputs(
    model: WorldStereoTransformer, seed: int = 1, batch: int = 1, frames: int = 4, ref_index=(1, 0, 1)
) -> dict[str, torch.Tensor]:
    """Makes all inputs of the transformer's forward, for 4x6 latents."""
    generator = torch.Generator().manual_seed(seed)
    h, w, R, config = 4, 6, len(ref_index), model.config

    def noise(*shape):
        return torch.randn(shape, generator=generator)

    inputs = {
        "hidden_states": noise(batch, config.in_channels, frames, h, w),
        "timestep": torch.full((batch,), 500.0),
        "encoder_hidden_states": noise(batch, 512, config.text_dim),
    }
    if config.image_dim:
        inputs["encoder_hidden_states_image"] = noise(batch, 9, config.image_dim)
    if config.controlnet_cfg:
        inputs["render_latent"] = noise(batch, 16, frames, h, w)
        inputs["render_mask"] = (noise(batch, 1, frames, 8 * h, 8 * w) > 0).float()
        inputs["camera_embedding"] = noise(batch, 6, frames, 8 * h, 8 * w)
        if config.controlnet_cfg.get("layout_channels"):
            inputs["layout"] = noise(batch, config.controlnet_cfg["layout_channels"], frames, h, w)
    if R:
        inputs["reference_latent"] = noise(batch, config.in_channels, R, h, w)
        inputs["ref_index"] = torch.tensor(ref_index)
    if model.has_memory_branch:
        inputs["camera_qt"] = noise(batch, frames, 7)
        if R:
            inputs["camera_qt_ref"] = noise(batch, R, 7)
    return inputs


def frozen(name: str) -> bool:
    """Whether the published checkpoints leave a tensor to the base model."""
    return name.startswith("blocks.") and (".attn2." in name or ".ffn." in name)


def write_checkpoint(
    root: Path,
    variant: str = "worldstereo-memory-dmd",
    *,
    seed: int = 0,
    encoders: bool = False,
    autoencoder: bool = True,
    max_shard_bytes: int | None = None,
    dtype: torch.dtype | None = None,
) -> WorldStereoTransformer:
    """Writes `<root>/<variant>` and `<root>/base`, and returns their transformer.

    `encoders` also writes tokenizer, text and image encoder, which needs transformers and takes a second or two.
    """
    control = {**CONTROL, "main_camera_embedding": variant != "worldstereo-camera"}
    model = tiny_transformer(seed, control)
    config = {**CONFIG, **(DMD if variant.endswith("dmd") else {})}
    # Only the frozen tensors of the base model are those of the variant: loading others from it is an error.
    base = tiny_transformer(seed + 1, control)
    trained = model.state_dict()
    base.load_state_dict({name: t for name, t in trained.items() if frozen(name)}, strict=False)
    save_variant(
        model,
        root / variant,
        config,
        keep=lambda name: not frozen(name),
        max_shard_bytes=max_shard_bytes,
        dtype=dtype,
    )
    save_base(base, root / "base", max_shard_bytes=max_shard_bytes)
    write_scheduler(root / "base")
    if autoencoder:
        tiny_wan_autoencoder().save_pretrained(root / "base" / "vae")
    if encoders:
        write_encoders(root / "base")
    return model


def write_small_checkpoint(
    root: Path,
    variants: tuple[str, ...] = VARIANTS,
    *,
    seed: int = 0,
    dtype: torch.dtype | None = torch.bfloat16,
    max_shard_bytes: int | None = None,
    layout: bool = True,
) -> Path:
    """Writes an untrained tiny model in the layout of the bundled small model, and returns its root.

    It has no text and image encoders, an image autoencoder, and variants with the whole backbone.
    """
    for variant in variants:
        control = {**SMALL_CONTROL, "main_camera_embedding": variant != CAMERA}
        if not layout:
            del control["layout_channels"]
        model = tiny_transformer(seed, control, **SMALL_BACKBONE)
        config = {**SMALL_CONFIG, **(DMD if variant == DMD_VARIANT else {})}
        save_variant(model, root / variant, config, dtype=dtype, max_shard_bytes=max_shard_bytes)
        save_base(model, root / "base", weights=False)
    write_scheduler(root / "base")
    torch.manual_seed(seed)
    autoencoder = ImageAutoencoder(widths=(8, 8, 8))
    tensors = {name: tensor.to(dtype or tensor.dtype) for name, tensor in autoencoder.state_dict().items()}
    save_weights(root / "base" / "vae", BASE_STEM, tensors, max_shard_bytes=max_shard_bytes)
    autoencoder_config = {key: value for key, value in autoencoder.config.items() if not key.startswith("_")}
    write_json(root / "base" / "vae" / "config.json", {"_class_name": "ImageAutoencoder", **autoencoder_config})
    return root


def tiny_wan_autoencoder(seed: int = 0):
    """Makes a tiny AutoencoderKLWan with the published latent statistics and random norms."""
    from diffusers import AutoencoderKLWan

    torch.manual_seed(seed)
    model = AutoencoderKLWan(base_dim=8, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=1).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.requires_grad_(False)


def write_scheduler(base: Path) -> None:
    """Writes the scheduler of Wan's 480P model."""
    from diffusers import UniPCMultistepScheduler

    UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0).save_pretrained(
        base / "scheduler"
    )


def write_encoders(base: Path, seed: int = 0) -> None:
    """Writes tiny versions of tokenizer, UMT5, CLIP and its image processor."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        CLIPVisionModel,
        PreTrainedTokenizerFast,
        UMT5Config,
        UMT5EncoderModel,
    )

    letters = "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,'-"
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -10.0), *((letter, -3.0) for letter in letters)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    ).save_pretrained(base / "tokenizer")

    torch.manual_seed(seed)
    UMT5EncoderModel(
        UMT5Config(vocab_size=len(pieces), d_model=TEXT_DIM, d_kv=8, d_ff=32, num_layers=2, num_heads=3)
    ).save_pretrained(base / "text_encoder")
    CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=IMAGE_DIM,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=224,
            patch_size=14,
        )
    ).save_pretrained(base / "image_encoder")
    CLIPImageProcessor().save_pretrained(base / "image_processor")


def change_config(folder: Path, **changes) -> None:
    """Changes entries of a `config.json`; None removes one."""
    file = folder / "config.json"
    content = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def edit_tensors(file, change):
    """Rewrites a safetensors file with `change(tensors)`."""
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def assert_load_fails(root, message, **arguments):
    """Loading raises a CheckpointError whose one-line message matches `message`."""
    with pytest.raises(CheckpointError, match=message) as caught:
        load_transformer(find_checkpoint(root, **arguments))
    text = str(caught.value)
    assert text.endswith("."), text
    assert "\n" not in text
