"""`config.json` of a checkpoint and of its base, read with every number checked."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worldstereo_ros.models.checkpoints.weights import CheckpointError, read_json
from worldstereo_ros.models.worldstereo.transformer import WorldStereoTransformer

# Fewest steps first: what is taken where a folder holds several and none was asked for.
VARIANTS = ("worldstereo-memory-dmd", "worldstereo-memory", "worldstereo-camera")
SCALE_MAP = ((480, 768), (512, 720), (576, 640), (608, 608), (640, 576), (720, 512), (768, 480))
MAX_WIDTH, MAX_LAYERS = 65536, 512
TEXT_ENCODERS = ("umt5", "none")
RENDER_FILLS = ("grey", "smooth")
LAYOUT_CHANNELS = 20  # the latent of a picture and four marks, see pipelines/layout.py
GUIDANCE, MAX_GUIDANCE = 5.0, 100.0  # of published variants that are not distilled; the most that is believed
CONTROL_NUMBERS = ("conv_out_dim", "dim", "ffn_dim", "num_heads", "num_layers", "time_embed_dim")


@dataclass(frozen=True)
class CheckpointConfig:
    """What `config.json` says.

    Attributes:
        variant: one of `VARIANTS`.
        base_model: hub id or folder of the diffusers Wan image-to-video model that gives everything else.
        controlnet_cfg: sizes of the control branch, switches of the memory branch.
        nframe: keyframes of a clip.
        scale_map: ((height, width), ...) of the pictures that the model was trained on.
        latent_cond_mode: `full_vae` or `first_frame_only`.
        negative_prompt: for guidance; the distilled model has none.
        raw: the whole file.
        text_encoder: `umt5`, or `none`: the model takes no words.
        guidance_scale: of classifier-free guidance, 1 = none; None: see `guidance`.
        render_fill: what stands in the holes of rendered pictures before they are encoded: `grey`, or `smooth`, what
            surrounds them.
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
    def remembers(self) -> bool:
        """True for the variants that take references."""
        return self.variant != "worldstereo-camera"

    @property
    def reads_text(self) -> bool:
        """True where a prompt means something to the model."""
        return self.text_encoder != "none"

    @property
    def fills_renders(self) -> bool:
        """True where holes of rendered pictures are filled smoothly before they are encoded."""
        return self.render_fill == "smooth"

    @property
    def shows_layout(self) -> bool:
        """True where the model is shown what large flat surfaces would look like where nothing was seen."""
        return bool(self.controlnet_cfg.get("layout_channels"))

    @property
    def distilled(self) -> bool:
        """True for the variants of few steps."""
        return "dmd_steps" in self.raw

    @property
    def guidance(self) -> float:
        """The scale of guidance: as the file says; else 5, and 1 (none) for distilled models and those without text."""
        if self.guidance_scale is not None:
            return self.guidance_scale
        return GUIDANCE if self.reads_text and not self.distilled else 1.0

    def image_size_for(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the scale map whose ratio is nearest."""
        return min(self.scale_map, key=lambda size: abs(size[0] / size[1] - height / width))


def read_config(file: Path, variant: str | None = None) -> CheckpointConfig:
    """Reads and checks `config.json`.

    Args:
        file: the file.
        variant: what was asked for, or what the folder is called; None: find out.

    Raises:
        CheckpointError: something is missing, out of range, or the file is another variant's.
    """
    raw = read_json(file)
    lost = [key for key in ("base_model", "controlnet_cfg") if key not in raw]
    if lost:
        raise CheckpointError(f"{file} lacks {' and '.join(lost)}; it is no config.json of a WorldStereo checkpoint.")
    base, control = raw["base_model"], raw["controlnet_cfg"]
    if not isinstance(base, str) or not base.strip() or not isinstance(control, dict):
        raise CheckpointError(f"{file}: base_model must be a name and controlnet_cfg an object.")
    if "5B" in base or "5B" in str(control.get("base_model", "")):
        raise CheckpointError(f"{file} is for a 5B base ({base}), whose latents are other ones; use a 14B base.")
    for key in CONTROL_NUMBERS:
        _whole(file, control, key, 1, MAX_LAYERS if key in ("num_layers", "num_heads") else MAX_WIDTH)
    for key, low, high in (("add_channels", 1, 64), ("mid_channels", 8, MAX_WIDTH), ("mask_downsample", 1, 8)):
        if key in control:
            _whole(file, control, key, low, high)
    if "camera_embedding_dim" in control:
        _whole(file, control, "camera_embedding_dim", 1, 64)
    layout = control.get("layout_channels", 0)
    if type(layout) is not int or layout not in (0, LAYOUT_CHANNELS):
        raise CheckpointError(f"{file}: layout_channels is {layout!r}; 0 or {LAYOUT_CHANNELS} was expected.")
    fill = _choice(file, raw, "render_fill", RENDER_FILLS)
    if layout and fill != "smooth":
        raise CheckpointError(
            f"{file}: layout_channels is {layout} and render_fill {fill}; what planes add is added to a smooth fill: "
            "render_fill must be smooth."
        )
    prior = control.get("render_prior")
    if prior is not None and not (
        isinstance(prior, list)
        and len(prior) == 2
        and all(isinstance(n, int | float) and not isinstance(n, bool) and 0.01 <= n <= 10 for n in prior)
    ):
        raise CheckpointError(f"{file}: render_prior is {prior!r}; two deviations in 0.01..10 were expected.")
    heads, dim = control["num_heads"], control["dim"]
    if dim % heads or (dim // heads) % 2 or control.get("mid_channels", 64) % 8:
        raise CheckpointError(
            f"{file}: controlnet_cfg has dim {dim} for {heads} heads and mid_channels "
            f"{control.get('mid_channels', 64)}; heads of an even width and mid_channels in eights are needed."
        )
    mode = raw.get("latent_cond_mode", "full_vae")
    if mode not in ("full_vae", "first_frame_only"):
        raise CheckpointError(f"{file}: latent_cond_mode is '{mode}'; full_vae or first_frame_only was expected.")
    if "dmd_steps" in raw:
        _whole(file, raw, "dmd_steps", 1, 1000)
    text_encoder = _choice(file, raw, "text_encoder", TEXT_ENCODERS)
    scale = _guidance_scale(file, raw)
    if text_encoder == "none" and scale is not None and scale != 1:
        raise CheckpointError(
            f"{file}: guidance_scale is {scale:g} and text_encoder is none; guidance sets a prompt against another, "
            "so without text it must be 1."
        )
    return CheckpointConfig(
        variant=_variant(file, raw, variant),
        base_model=base,
        controlnet_cfg=control,
        nframe=_whole(file, raw, "nframe", 2, 1000) if "nframe" in raw else 21,
        scale_map=_scale_map(file, raw.get("scale_map", SCALE_MAP)),
        latent_cond_mode=mode,
        negative_prompt=str(raw.get("negative_prompt") or ""),
        raw=raw,
        text_encoder=text_encoder,
        guidance_scale=scale,
        render_fill=fill,
    )


def read_backbone(file: Path) -> dict[str, Any]:
    """Arguments of the backbone from the base's `transformer/config.json`.

    Raises:
        CheckpointError: it is of another class, or a size is out of range.
    """
    raw = read_json(file)
    kind = raw.get("_class_name", "WanTransformer3DModel")
    if kind not in ("WanTransformer3DModel", "WorldStereoTransformer"):
        raise CheckpointError(f"{file} describes a {kind}; a WanTransformer3DModel was expected.")
    known = set(inspect.signature(WorldStereoTransformer.__init__).parameters) - {"self", "controlnet_cfg"}
    backbone = {key: value for key, value in raw.items() if key in known}
    foreign = sorted(k for k, v in raw.items() if k not in known and not k.startswith("_") and v not in (None, False))
    foreign = [key for key in foreign if key not in ("controlnet_cfg", "window_size")]
    if foreign:
        raise CheckpointError(f"{file} has settings that this model does not know: {', '.join(foreign)}.")
    for key in ("num_attention_heads", "num_layers"):
        _whole(file, backbone, key, 1, MAX_LAYERS)
    for key in ("attention_head_dim", "in_channels", "out_channels", "text_dim", "freq_dim", "ffn_dim"):
        _whole(file, backbone, key, 1, MAX_WIDTH)
    for key in ("image_dim", "added_kv_proj_dim", "pos_embed_seq_len"):
        if backbone.get(key) is not None:
            _whole(file, backbone, key, 1, MAX_WIDTH)
    patch = backbone.get("patch_size", [1, 2, 2])
    if not (isinstance(patch, list) and len(patch) == 3 and all(type(p) is int and 1 <= p <= 16 for p in patch)):
        raise CheckpointError(f"{file}: patch_size is {patch}; three whole numbers in 1..16 were expected.")
    backbone["patch_size"] = tuple(patch)
    heads, width = backbone["num_attention_heads"], backbone["attention_head_dim"]
    if heads * width > MAX_WIDTH or width % 2 or backbone["freq_dim"] % 2:
        raise CheckpointError(
            f"{file}: {heads} heads of width {width} and freq_dim {backbone['freq_dim']}; even widths and at most "
            f"{MAX_WIDTH} in all were expected."
        )
    return backbone


def infer_variant(raw: Mapping[str, Any]) -> str:
    """What a `config.json` is, from what it contains."""
    if "dmd_steps" in raw:
        return "worldstereo-memory-dmd"
    control = raw.get("controlnet_cfg")
    remembers = isinstance(control, dict) and control.get("main_camera_embedding")
    return "worldstereo-memory" if remembers else "worldstereo-camera"


def _variant(file: Path, raw: Mapping[str, Any], asked: str | None) -> str:
    if asked is not None and asked not in VARIANTS:
        raise CheckpointError(f"The variant '{asked}' is not known; choose one of {', '.join(VARIANTS)}.")
    stated = raw.get("model_type")
    found = stated if stated in VARIANTS else infer_variant(raw)
    if asked is not None and asked != found:
        raise CheckpointError(
            f"{file} describes the variant {found} and {asked} was asked for or stands in the folder's name; "
            "choose the other variant, or put the right config.json there."
        )
    return found


def _scale_map(file: Path, value: object) -> tuple[tuple[int, int], ...]:
    sizes = []
    listed = value if isinstance(value, list | tuple) else ()
    for size in listed:
        if not (isinstance(size, list | tuple) and len(size) == 2):
            break
        if not all(type(n) is int and 16 <= n <= 8192 and n % 16 == 0 for n in size):
            break
        sizes.append((size[0], size[1]))
    if not sizes or len(sizes) != len(listed):
        raise CheckpointError(f"{file}: scale_map must list [height, width] pairs in multiples of 16, 16..8192.")
    return tuple(sizes)


def _choice(file: Path, values: Mapping[str, Any], key: str, choices: tuple[str, ...]) -> str:
    """The value of a key that need not be there; the first choice is what holds then."""
    value = values.get(key, choices[0])
    if value not in choices:
        raise CheckpointError(f"{file}: {key} is {value!r}; {' or '.join(choices)} was expected.")
    return str(value)


def _guidance_scale(file: Path, values: Mapping[str, Any]) -> float | None:
    value = values.get("guidance_scale")
    if value is None:
        return None
    # Below 1 a prompt would be turned against itself.
    if type(value) not in (int, float) or not 1 <= value <= MAX_GUIDANCE:
        raise CheckpointError(
            f"{file}: guidance_scale is {value!r}; a number in 1..{MAX_GUIDANCE:g} was expected, 1 = no guidance."
        )
    return float(value)


def _whole(file: Path, values: Mapping[str, Any], key: str, low: int, high: int) -> int:
    value = values.get(key)
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        value = int(value)
    if type(value) is not int or not low <= value <= high:
        raise CheckpointError(f"{file}: {key} is {value!r}; a whole number in {low}..{high} was expected.")
    return value
