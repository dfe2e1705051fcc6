"""Reads and validates `config.json` of a checkpoint and of its base model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worldstereo_ros.models.checkpoints.bounds import (
    MAX_LAYERS,
    MAX_TIMESTEPS,
    MAX_WIDTH,
    check_integer,
    check_number,
    check_numbers,
)
from worldstereo_ros.models.checkpoints.weights import CheckpointError, read_json
from worldstereo_ros.models.worldstereo.transformer import WorldStereoTransformer

# Fewest denoising steps first: the order of preference where a folder holds several variants.
VARIANTS = ("worldstereo-memory-dmd", "worldstereo-memory", "worldstereo-camera")
SCALE_MAP = ((480, 768), (512, 720), (576, 640), (608, 608), (640, 576), (720, 512), (768, 480))
TEXT_ENCODERS = ("umt5", "none")
RENDER_FILLS = ("grey", "smooth")
LAYOUT_CHANNELS = 20  # an image latent and four masks, see pipelines.geometric.plane_extrapolation
DEFAULT_GUIDANCE_SCALE = 5.0  # of the published variants that are not distilled
MAX_GUIDANCE_SCALE = 100.0
CONTROL_SIZES = ("conv_out_dim", "dim", "ffn_dim", "num_heads", "num_layers", "time_embed_dim")


@dataclass(frozen=True)
class CheckpointConfig:
    """Content of a checkpoint's `config.json`.

    Attributes:
        variant: one of `VARIANTS`.
        base_model: hub id or folder of the diffusers Wan image-to-video model that has all other parts.
        controlnet_cfg: sizes of the control branch and switches of the memory branch.
        nframe: keyframes of a clip.
        scale_map: ((height, width), ...) image sizes that the model was trained on.
        latent_cond_mode: `full_vae` or `first_frame_only`, how the condition video is encoded.
        negative_prompt: prompt for classifier-free guidance; the distilled model has none.
        raw: the whole file.
        text_encoder: `umt5`, or `none` for models without text conditioning.
        guidance_scale: scale of classifier-free guidance, 1 = none; None = the default of the variant, see `guidance`.
        render_fill: content of the holes of rendered images before they are encoded: `grey`, or `smooth` (filled from
            the surrounding pixels).
    """

    variant: str
    base_model: str
    controlnet_cfg: Mapping[str, Any]
    nframe: int
    scale_map: tuple[tuple[int, int], ...]
    latent_cond_mode: str
    negative_prompt: str
    raw: Mapping[str, Any]
    text_encoder: str = "umt5"
    guidance_scale: float | None = None
    render_fill: str = "grey"

    @property
    def has_memory_branch(self) -> bool:
        """Whether the variant takes reference views (the memory branch, SSM)."""
        return self.variant != "worldstereo-camera"

    @property
    def uses_text(self) -> bool:
        """Whether the model is conditioned on text."""
        return self.text_encoder != "none"

    @property
    def fills_render_holes(self) -> bool:
        """Whether holes of rendered images are filled from the surrounding pixels before they are encoded."""
        return self.render_fill == "smooth"

    @property
    def uses_layout(self) -> bool:
        """Whether the model is conditioned on extrapolated planes (see `pipelines.geometric.plane_extrapolation`)."""
        return bool(self.controlnet_cfg.get("layout_channels"))

    @property
    def distilled(self) -> bool:
        """Whether the variant is distilled to few denoising steps."""
        return "dmd_steps" in self.raw

    @property
    def guidance(self) -> float:
        """The guidance scale: that of the file, else 5, or 1 (none) for distilled models and models without text."""
        if self.guidance_scale is not None:
            return self.guidance_scale
        return DEFAULT_GUIDANCE_SCALE if self.uses_text and not self.distilled else 1.0

    def image_size_for(self, height: int, width: int) -> tuple[int, int]:
        """Returns the (height, width) of the scale map with the most similar aspect ratio."""
        return min(self.scale_map, key=lambda size: abs(size[0] / size[1] - height / width))


def read_config(file: Path, variant: str | None = None) -> CheckpointConfig:
    """Reads and validates the `config.json` of a checkpoint.

    Args:
        file: the file.
        variant: expected variant; None = any.

    Raises:
        CheckpointError: a value is missing or out of range, or the file is of another variant.
    """
    raw = read_json(file)
    absent = [key for key in ("base_model", "controlnet_cfg") if key not in raw]
    if absent:
        raise CheckpointError(
            f"{file} lacks {' and '.join(absent)}; the config.json of a WorldStereo checkpoint was expected."
        )
    base, control = raw["base_model"], raw["controlnet_cfg"]
    if not isinstance(base, str) or not base.strip() or not isinstance(control, dict):
        raise CheckpointError(f"{file}: base_model must be a string and controlnet_cfg an object.")
    if "5B" in base or "5B" in str(control.get("base_model", "")):
        raise CheckpointError(f"{file} is for a 5B base model ({base}), whose latents differ; use a 14B base model.")
    for key in CONTROL_SIZES:
        check_integer(file, control, key, 1, MAX_LAYERS if key in ("num_layers", "num_heads") else MAX_WIDTH)
    for key, low, high in (("add_channels", 1, 64), ("mid_channels", 8, MAX_WIDTH), ("mask_downsample", 1, 8)):
        if key in control:
            check_integer(file, control, key, low, high)
    if "camera_embedding_dim" in control:
        check_integer(file, control, "camera_embedding_dim", 1, 64)
    layout = control.get("layout_channels", 0)
    if type(layout) is not int or layout not in (0, LAYOUT_CHANNELS):
        raise CheckpointError(f"{file}: layout_channels is {layout!r}; 0 or {LAYOUT_CHANNELS} was expected.")
    fill = _check_choice(file, raw, "render_fill", RENDER_FILLS)
    if layout and fill != "smooth":
        raise CheckpointError(
            f"{file}: layout_channels is {layout} and render_fill {fill}; extrapolated planes are drawn over a smooth "
            "fill, so that render_fill must be smooth."
        )
    prior = control.get("render_prior")
    if prior is not None and not (
        isinstance(prior, list)
        and len(prior) == 2
        and all(isinstance(n, int | float) and not isinstance(n, bool) and 0.01 <= n <= 10 for n in prior)
    ):
        raise CheckpointError(f"{file}: render_prior is {prior!r}; two standard deviations in 0.01..10 were expected.")
    heads, dim = control["num_heads"], control["dim"]
    if dim % heads or (dim // heads) % 2 or control.get("mid_channels", 64) % 8:
        raise CheckpointError(
            f"{file}: controlnet_cfg has dim {dim} for {heads} heads and mid_channels "
            f"{control.get('mid_channels', 64)}; an even width of each head and a multiple of 8 for mid_channels are "
            "needed."
        )
    mode = raw.get("latent_cond_mode", "full_vae")
    if mode not in ("full_vae", "first_frame_only"):
        raise CheckpointError(f"{file}: latent_cond_mode is '{mode}'; full_vae or first_frame_only was expected.")
    if "dmd_steps" in raw:
        check_integer(file, raw, "dmd_steps", 1, 1000)
        ranges = {"dmd_start_steps": (0, MAX_TIMESTEPS), "dmd_end_steps": (1, MAX_TIMESTEPS), "gen_shift": (1e-3, 1e3)}
        for key, limits in ranges.items():
            if key in raw:
                check_number(file, raw, key, *limits)
    text_encoder = _check_choice(file, raw, "text_encoder", TEXT_ENCODERS)
    scale = _check_guidance_scale(file, raw)
    if text_encoder == "none" and scale is not None and scale != 1:
        raise CheckpointError(
            f"{file}: guidance_scale is {scale:g} and text_encoder is none; guidance needs prompts, "
            "so that without text it must be 1."
        )
    return CheckpointConfig(
        variant=_check_variant(file, raw, variant),
        base_model=base,
        controlnet_cfg=control,
        nframe=check_integer(file, raw, "nframe", 2, 1000) if "nframe" in raw else 21,
        scale_map=_check_scale_map(file, raw.get("scale_map", SCALE_MAP)),
        latent_cond_mode=mode,
        negative_prompt=str(raw.get("negative_prompt") or ""),
        raw=raw,
        text_encoder=text_encoder,
        guidance_scale=scale,
        render_fill=fill,
    )


def read_backbone(file: Path) -> dict[str, Any]:
    """Reads the arguments of the backbone from the base model's `transformer/config.json`.

    Args:
        file: the file.

    Raises:
        CheckpointError: the file describes another class, or a size is out of range.
    """
    raw = read_json(file)
    class_name = raw.get("_class_name", "WanTransformer3DModel")
    if class_name not in ("WanTransformer3DModel", "WorldStereoTransformer"):
        raise CheckpointError(f"{file} describes a {class_name}; a WanTransformer3DModel was expected.")
    check_numbers(file, raw)
    known = set(inspect.signature(WorldStereoTransformer.__init__).parameters) - {"self", "controlnet_cfg"}
    backbone = {key: value for key, value in raw.items() if key in known}
    unknown = sorted(k for k, v in raw.items() if k not in known and not k.startswith("_") and v not in (None, False))
    unknown = [key for key in unknown if key not in ("controlnet_cfg", "window_size")]
    if unknown:
        raise CheckpointError(f"{file} has arguments that this model does not have: {', '.join(unknown)}.")
    for key in ("num_attention_heads", "num_layers"):
        check_integer(file, backbone, key, 1, MAX_LAYERS)
    for key in ("attention_head_dim", "in_channels", "out_channels", "text_dim", "freq_dim", "ffn_dim"):
        check_integer(file, backbone, key, 1, MAX_WIDTH)
    for key in ("image_dim", "added_kv_proj_dim", "pos_embed_seq_len"):
        if backbone.get(key) is not None:
            check_integer(file, backbone, key, 1, MAX_WIDTH)
    patch = backbone.get("patch_size", [1, 2, 2])
    if not (isinstance(patch, list) and len(patch) == 3 and all(type(p) is int and 1 <= p <= 16 for p in patch)):
        raise CheckpointError(f"{file}: patch_size is {patch}; three integers in 1..16 were expected.")
    backbone["patch_size"] = tuple(patch)
    heads, width = backbone["num_attention_heads"], backbone["attention_head_dim"]
    if heads * width > MAX_WIDTH or width % 2 or backbone["freq_dim"] % 2:
        raise CheckpointError(
            f"{file}: {heads} heads of width {width} and freq_dim {backbone['freq_dim']}; even widths and at most "
            f"{MAX_WIDTH} in all were expected."
        )
    return backbone


def infer_variant(raw: Mapping[str, Any]) -> str:
    """Returns the variant that the content of a `config.json` belongs to."""
    if "dmd_steps" in raw:
        return "worldstereo-memory-dmd"
    control = raw.get("controlnet_cfg")
    has_memory_branch = isinstance(control, dict) and control.get("main_camera_embedding")
    return "worldstereo-memory" if has_memory_branch else "worldstereo-camera"


def _check_variant(file: Path, raw: Mapping[str, Any], expected: str | None) -> str:
    if expected is not None and expected not in VARIANTS:
        raise CheckpointError(f"The variant '{expected}' does not exist; choose one of {', '.join(VARIANTS)}.")
    stated = raw.get("model_type")
    found = stated if stated in VARIANTS else infer_variant(raw)
    if expected is not None and expected != found:
        raise CheckpointError(
            f"{file} describes the variant {found}, but {expected} was requested or is the name of the folder; "
            "choose the other variant, or replace the config.json."
        )
    return found


def _check_scale_map(file: Path, value: object) -> tuple[tuple[int, int], ...]:
    sizes = []
    pairs = value if isinstance(value, list | tuple) else ()
    for size in pairs:
        if not (isinstance(size, list | tuple) and len(size) == 2):
            break
        if not all(type(n) is int and 16 <= n <= 8192 and n % 16 == 0 for n in size):
            break
        sizes.append((size[0], size[1]))
    if not sizes or len(sizes) != len(pairs):
        raise CheckpointError(f"{file}: scale_map must list [height, width] pairs in multiples of 16, 16..8192.")
    return tuple(sizes)


def _check_choice(file: Path, values: Mapping[str, Any], key: str, choices: tuple[str, ...]) -> str:
    """Returns the value of an optional key; the first choice is the default."""
    value = values.get(key, choices[0])
    if value not in choices:
        raise CheckpointError(f"{file}: {key} is {value!r}; {' or '.join(choices)} was expected.")
    return str(value)


def _check_guidance_scale(file: Path, values: Mapping[str, Any]) -> float | None:
    value = values.get("guidance_scale")
    if value is None:
        return None
    # A scale below 1 would guide towards the negative prompt.
    if type(value) not in (int, float) or not 1 <= value <= MAX_GUIDANCE_SCALE:
        raise CheckpointError(
            f"{file}: guidance_scale is {value!r}; a number in 1..{MAX_GUIDANCE_SCALE:g} was expected, 1 = no guidance."
        )
    return float(value)
